import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.config.toml import plain_settings
from fedsim.errors import ConfigError
from fedsim.results.reading import find_runs
from fedsim.results.report.comparing.question import Question, read_budgets
from tests.conftest import TINY

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no run": (lambda: fedsim.load([]), "there are no runs to read; give the folder of a run"),
    "nothing": (lambda: fedsim.load(None), "paths = None must be a path, or a list of paths"),  # type: ignore[arg-type]
    "a number for settings": (lambda: fedsim.partition(3), "settings are 3; give the path of a TOML file, or a dict"),  # type: ignore[arg-type]
    "a list of overrides": (
        lambda: fedsim.partition(TINY, ["a"]),  # type: ignore[arg-type]
        r"overrides are \['a'\]; give a dict by setting",
    ),
    "no job": (lambda: fedsim.run(TINY, jobs=0), "jobs = 0 must be a whole number of at least 1"),
    "a path for a name": (lambda: fedsim.run(TINY, name="../a"), "name = '../a' must be a folder's name"),
    "the folder above": (lambda: fedsim.run(TINY, name=".."), "name = '..' must be a folder's name"),
    "no function": (lambda: fedsim.run(TINY, on_round=3), "on_round = 3 must be a function"),  # type: ignore[arg-type]
    "a metric": (lambda: Question(metric="acc"), "--metric 'acc' must be one of loss, accuracy, rmse, balanced-"),  # type: ignore[arg-type]
    "a round": (lambda: Question(at=3), "--at 3 must be one of last, best"),  # type: ignore[arg-type]
    "a list to group by": (lambda: Question(by=["seed"]), r"--by \['seed'\] must be a text"),  # type: ignore[arg-type]
    "a text for a target": (lambda: Question(target="0.9"), "--target '0.9' must be a number, such as 0.9"),  # type: ignore[arg-type]
    "no evaluations to smooth": (lambda: Question(smooth=0), "--smooth 0 must be a whole number of evaluations from 1"),
    "a target that is no number": (lambda: Question(target=math.nan), "--target nan must be greater than 0"),
    "a number for a budget": (lambda: read_budgets([3]), "--budget 3 must be a text, such as bytes=50MB"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_one_line_that_names_it(wrong: str) -> None:
    call, message = WRONG[wrong]
    with pytest.raises(ConfigError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    given = {
        "clients": np.int64(4),
        "local": {"lr": np.float32(0.5)},
        "ts": np.array([0.0, 1.0]),
        "n": torch.tensor(3),
        "seed": range(2),
    }
    plain = plain_settings(given)
    assert plain == {"clients": 4, "local": {"lr": 0.5}, "ts": [0.0, 1.0], "n": 3, "seed": [0, 1]}
    assert [type(plain[key]) for key in ("clients", "n", "ts")] == [int, int, list]


def test_a_run_that_is_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study" / "one-s0").mkdir(parents=True)
    (tmp_path / "study" / "one-s0" / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    paths = [Path("study"), tmp_path / "study", Path("study/one-s0"), Path("study/../study")]
    assert [run.path for run in find_runs(paths)] == [Path("study/one-s0")]
