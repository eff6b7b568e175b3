"""A mistake in code of the user's own is one line with its file and line, before anything is written."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.config import Config
from fedsim.config.choices import CATALOGUES, resolve
from fedsim.errors import ConfigError
from fedsim.experiment.run import prepare

Write = Callable[[str], str]
BASE = {"rounds": 1, "clients": 2, "partition": {"scheme": "iid"}, "data": {"train_examples": 60, "test_examples": 30}}
MODEL = """
from torch import nn
class part(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc = nn.Linear(64, classes)
        {built}
    def forward(self, x):
        return {outputs}
"""
STRATEGY = """
from fedsim import Strategy
class part(Strategy):
    def {hook}:
        return {value}
"""
NEVER_IMPORTED = {
    "a syntax error": ("def part(:\n", r"SyntaxError: invalid syntax \(MODULE.py, line 1\)"),
    "a name error": ("\nx = nothing\n", r"NameError: name 'nothing' is not defined \(MODULE.py, line 2\)"),
    "a module that is not there": ("\nimport pandsa\n", r"ModuleNotFoundError: .* 'pandsa' \(MODULE.py, line 2\)"),
    "a relative import": ("from . import x\n", r"ImportError: attempted relative .* \(MODULE.py, line 1\)"),
    "a key": ("x = {}['label']\n", r"KeyError: 'label' \(MODULE.py, line 1\)"),
    "an end of Python": ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(MODULE.py, line 2\)"),
}
NEVER_BUILT = {
    "data with a wrong key": (
        "data",
        "def part():\n    return {}['label']\n",
        r"KeyError: 'label' \(MODULE.py, line 2\)",
    ),
    "a model whose parameters have other names": (
        "model",
        "def part(size, classes):\n    return None\n",
        "'model.size' is missing; .* needs it; set it, or give .* what fedsim passes: shape, classes, vocabulary",
    ),
    "data of a library's error": (
        "data",
        "import json\ndef part():\n    return json.loads('{')\n",
        r"JSONDecodeError: Expecting .* \(MODULE.py, line 3\)",
    ),
    "data without a file": (
        "data",
        "def part():\n    return open('no')\n",
        r"FileNotFoundError: .* \(MODULE.py, line 2\)",
    ),
    "data with a value error": (
        "data",
        "def part():\n    raise ValueError('1\\n2')\n",
        r"ValueError: 1 2 \(MODULE.py, line 2\)",
    ),
    "data that end Python": ("data", "def part():\n    raise SystemExit\n", r"SystemExit \(MODULE.py, line 2\)"),
    "an annotation that is nowhere": (
        "data",
        "def part(*, a: 'Frame' = 0): pass\n",
        "NameError: name 'Frame' is not defined",
    ),
    "an option with the name of a setting": (  # which had the option's value after the run, or lost its own
        "model",
        "def part(shape, classes, *, freeze: bool = False): pass\n",
        r"has an option 'freeze', and every \[model\] has a setting of that name; rename the parameter",
    ),
    "an annotation that is no option": (
        "data",
        "import threading\ndef part(*, a: threading.Event = None): pass\n",
        "PydanticSchemaGenerationError: .*; annotate them with plain types",
    ),
    "a partition": (
        "partition",
        "def part(labels, clients, rng):\n    return {}[3]\n",
        r"KeyError: 3 \(MODULE.py, line 2\)",
    ),
    "a partition of examples that are not there": (
        "partition",
        "import numpy as np\nfrom partitions import Partition\n"
        "def part(labels, clients, rng):\n    return Partition(np.array([0, 999]), np.array([0, 1, 2]))\n",
        r"IndexError: index 999 is out of bounds",
    ),
    "a skew": (
        "features",
        "def part(inputs, *_):\n    return inputs.no\n",
        r"AttributeError: .* \(MODULE.py, line 2\)",
    ),
    "a partition of lists": (
        "partition",
        "def part(labels, clients):\n    return [[0], [1]]\n",
        r"gives a list; it must be a Partition or Split, such as Partition.from_owners\(owners, clients\) with",
    ),
    "a partition of other clients": (
        "partition",
        "from partitions import Partition\ndef part(labels):\n    return Partition.from_owners(labels % 3, 3)\n",
        r"gives 3 clients, and clients = 2; it must give as many",
    ),
    "a model of several outputs": (
        "model",
        MODEL.format(built="", outputs="dict(logits=self.fc(x.flatten(1)))"),
        r"maps 2 inputs to a dict; it must be one tensor, \(2, 10\): let forward return the logits alone",
    ),
    "a rule with state": (
        "strategy",
        "from fedsim import ClientRule, Strategy\nclass Rule(ClientRule):\n    def start(self, local):\n"
        "        self.seen = local.params\n        return local\nclass part(Strategy):\n    client_rule = Rule\n",
        r"Rule.start changes self.seen, and all clients share one rule",
    ),
    "a model's layers": (
        "model",
        MODEL.format(built="shape['x']", outputs="x"),
        r"TypeError: tuple indices .* \(MODULE.py, line 7\)",
    ),
    "a model's forward pass": (
        "model",
        MODEL.format(built="", outputs="self.no(x)"),
        r"does not accept inputs .* AttributeError: .* \(MODULE.py, line 9\)",
    ),
    "a model's channels": (
        "model",
        MODEL.format(built="self.conv = nn.Conv2d(3, 2, 1)", outputs="self.conv(x)"),
        r"takes images with 3 channels, but the images of 'digits' have 1; .* "
        r"\(\[data\] mode = 'RGB' of image-folder and",
    ),
    "a model's shapes": (
        "model",
        MODEL.format(built="", outputs="self.fc(x)"),
        r"RuntimeError: .* \(MODULE.py, line 9\)",
    ),
    "a strategy's option": (
        "strategy",
        STRATEGY.format(hook="prepare(self)", value="int('mu')"),
        r"ValueError: invalid literal .* \(MODULE.py, line 5\)",
    ),
    "a strategy's layers": (
        "strategy",
        STRATEGY.format(hook="shared(self, server_round)", value="self.no"),
        r"AttributeError: .* \(MODULE.py, line 5\)",
    ),
    "a strategy's layers, which depend on what it remembers": (
        "strategy",
        STRATEGY.format(hook="shared(self, server_round)", value="self.layers.group(self.memory['chosen'])"),
        r"KeyError: 'chosen' \(MODULE.py, line 5\) in shared\(1\), which is asked before the run too; let prepare put",
    ),
    "a strategy's plan": (
        "strategy",
        STRATEGY.format(hook="local_plan(self, server_round)", value="[][server_round]"),
        r"IndexError: .* \(MODULE.py, line 5\)",
    ),
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Write a module into the working folder, of a name that no other test has, and return the name."""
    monkeypatch.chdir(tmp_path)
    name = f"mistaken_{abs(hash(request.node.name))}"
    monkeypatch.delitem(sys.modules, name, raising=False)

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def settings(table: str, module: str) -> dict[str, Any]:
    key = next(each.key for each in CATALOGUES.values() if each.table == table)
    return BASE | {table: BASE.get(table, {}) | {key: f"{module}:part"}}  # type: ignore[operator]


@pytest.mark.parametrize("mistake", NEVER_IMPORTED)
@pytest.mark.parametrize("table", ["data", "strategy"])
def test_a_module_that_fails_as_it_is_imported_is_named_with_the_line(write: Write, table: str, mistake: str) -> None:
    source, message = NEVER_IMPORTED[mistake]
    module = write(source)
    with pytest.raises(
        ConfigError, match=f"= '{module}:part' cannot be imported from .*: {message}$".replace("MODULE", module)
    ):
        resolve(Config.parse(settings(table, module), ""))


@pytest.mark.parametrize("mistake", NEVER_BUILT)
def test_a_part_that_fails_as_it_is_built_is_named_with_the_line(write: Write, mistake: str) -> None:
    table, source, message = NEVER_BUILT[mistake]
    module = write(source)
    with pytest.raises(ConfigError, match=message.replace("MODULE", module)) as caught:
        prepare(resolve(Config.parse(settings(table, module), "")))
    assert "\n" not in str(caught.value)


def test_python_gets_the_same_line_and_the_cause(write: Write, tmp_path: Path) -> None:
    module = write("def part():\n    return {}['label']\n")
    with pytest.raises(
        ConfigError, match=rf"^data.name = '{module}:part': KeyError: 'label' \({module}.py, line 2\)$"
    ) as caught:
        fedsim.run(settings("data", module))
    assert isinstance(caught.value.__cause__, KeyError)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("__")] == [f"{module}.py"]
