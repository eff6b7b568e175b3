"""The content of code without a file, such as a cell of a notebook: it names a run like that of a file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.config.typed import digest_of_code

CELL = """
SIZES = {"hidden": [16, 8]}
LR = 0.1

def act(x):
    return x + 1  # of all

class Base:
    def size(self):
        return 3

class Net(Base):
    kind = "net"

    def __init__(self, shape, classes, hidden=16, by=act, builtin=len):
        self.parts = [lambda x: x * LR for _ in range(2)]

    @property
    def width(self):
        return SIZES["hidden"]

    @staticmethod
    def build(a, *, b=(1, 1)):
        return {a, "x", "y"} if a in {"x", "y"} else Net
"""
CHANGES = {
    "a default": ("hidden=16", "hidden=17"),
    "a default by keyword": ("b=(1, 1)", "b=(1, 2)"),
    "a member": ('kind = "net"', 'kind = "nets"'),
    "what a default computes": ("x + 1", "x + 2"),
    "a method of a base": ("return 3", "return 4"),
    "a function inside": ("x * LR", "x / LR"),
    "a constant": ("LR = 0.1", "LR = 0.2"),
    "a list in a table": ("[16, 8]", "[16, 9]"),
    "a property": ('SIZES["hidden"]', "LR"),
}
SCRIPT = """
import sys
import fedsim
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))

settings = {
    "rounds": 1, "clients": 2, "data": {"name": "digits", "train_examples": 60, "test_examples": 30},
    "partition": {"scheme": "iid"}, "model": {"name": "__main__:Net"}, "barriers": {"every": 0},
}
first, second = (fedsim.run(settings)[0].path for _ in range(2))
assert first == second
if sys.argv[0] == "-":
    fedsim.run(settings, {"sweep.seed": [1, 2]})
Net.forward = lambda self, x: self[1](self[0](x)) * 2
print(len({first, fedsim.run(settings)[0].path}), "folders")
"""


def digest(cell: str) -> str:
    scope: dict[str, Any] = {"__name__": "cell"}
    exec(cell, scope)
    return digest_of_code(scope["Net"], "cell")


def test_the_same_code_has_the_same_digest_wherever_it_is_written() -> None:
    assert digest(CELL) == digest(f"\n\nimport os\n{CELL.replace('  # of all', '')}\nother = 3\n")


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_code_computes_with_changes_the_digest(change: str) -> None:
    before, after = CHANGES[change]
    assert CELL.count(before) == 1
    assert digest(CELL) != digest(CELL.replace(before, after))


@pytest.mark.parametrize(("is_a_file", "folders"), [(True, "1 folders"), (False, "2 folders")])
def test_a_model_of_a_script_or_a_notebook_runs_again_and_in_a_sweep(
    is_a_file: bool, folders: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"] if is_a_file else [sys.executable, "-"]
    done = subprocess.run(
        command, input=None if is_a_file else SCRIPT, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert folders in done.stdout
    one_by_one = "2 runs, one after the other ('__main__:Net' is in the script or notebook"
    assert (one_by_one in " ".join(done.stderr.split())) is not is_a_file
