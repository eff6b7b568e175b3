"""What a custom part is called with: by the names of its parameters, of which it needs not have all."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES, resolve
from fedsim.config.naming import changed_settings
from fedsim.config.tables import FeaturesConfig, ModelConfig
from fedsim.data import Dataset, Examples
from fedsim.federation.objective import make_objective
from fedsim.options import by_name

NAMES = ("inputs", "client", "clients")
CALLS: dict[str, Callable[..., Any]] = {
    "in order": lambda inputs, client, clients: (inputs, client, clients),
    "in another order": lambda clients, inputs, client: (inputs, client, clients),
    "by keyword only": lambda *, client, inputs, clients: (inputs, client, clients),
    "any by keyword": lambda **given: (given["inputs"], given["client"], given["clients"]),
    "any by position": lambda *given: given,
    "the first by name, the others by position": lambda inputs, *given: (inputs, *given),
    "by position only": lambda a, b, c, /: (a, b, c),
    "bound before": partial(lambda more, clients, client, inputs: (inputs, client, clients), 0),
}


@pytest.mark.parametrize("case", CALLS)
def test_values_reach_the_parameters_of_their_names(case: str) -> None:
    assert by_name(CALLS[case], NAMES)("x", 3, 8) == ("x", 3, 8)


def test_an_entry_gets_only_what_it_asks_for_and_its_options() -> None:
    def skew(client: int, *, step: float) -> float:
        return client * step

    assert by_name(skew, NAMES)("x", 3, 8, step=0.5) == 1.5


def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "asks.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "asks", raising=False)


def test_a_skew_a_loss_and_a_model_with_parameters_in_another_order_get_the_right_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        monkeypatch,
        "import torch\n"
        "def skew(inputs, clients, client):\n    return inputs + client\n"
        "def loss(targets, outputs, *, share: float = 0.9):\n"
        "    error = (targets - outputs).flatten()\n    return torch.maximum(share * error, (share - 1) * error)\n"
        "class Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(4, 1)\n",
    )
    features = FeaturesConfig.model_validate({"skew": "asks:skew"})
    assert CATALOGUES["features"].make(features, torch.zeros(1), 2, 8, None).item() == 2
    assert isinstance(CATALOGUES["models"].make(ModelConfig(name="asks:Net"), (4,), 1), nn.Linear)
    examples = Examples(torch.zeros(2, 4), torch.ones(2, 1))
    config = Config.parse(
        {"rounds": 1, "clients": 1, "partition": {"scheme": "iid"}, "loss": {"name": "asks:loss"}}, ""
    )
    loss = make_objective(resolve(config), Dataset("one", examples, examples, (), task="regression"))
    torch.testing.assert_close(loss(torch.zeros(2, 1), torch.ones(2, 1)), torch.full((2,), 0.9))


def test_a_default_that_no_file_can_have_is_no_option_and_reaches_the_entry_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        monkeypatch,
        "from types import SimpleNamespace\nfrom torch import nn\n"
        "def net(act=nn.ReLU, sizes=SimpleNamespace(a=1), hidden=8, widths=(1, 2)):\n"
        "    return act, sizes, hidden, widths\n",
    )
    settings = ModelConfig.model_validate({"name": "asks:net", "hidden": 4})
    assert CATALOGUES["models"].make(settings, (4,), 1) == (nn.ReLU, SimpleNamespace(a=1), 4, (1, 2))
    assert list(CATALOGUES["models"].schema("asks:net").model_fields) == ["hidden", "widths"]
    model = {"name": "asks:net", "hidden": 4}
    config = Config.parse({"rounds": 1, "clients": 1, "partition": {"scheme": "iid"}, "model": model}, "")
    assert changed_settings(resolve(config))["model"].items() >= model.items()
