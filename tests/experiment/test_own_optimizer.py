"""Runs with an optimiser of the user's own: their numbers, their names, resuming, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.config.naming import run_name
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.rounds import RoundSummary
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from tests.conftest import run_files

Play = Callable[..., RunFolder]
BASE = {"rounds": 4, "engine": {"workers": 2}, "local__optimizer_state": "keep", "local__lr": 0.01}
SOURCE = """
import torch

def sgd(lr, params, momentum=0.0):
    return torch.optim.SGD(params, lr=lr, momentum=momentum)

class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    mean = self.state[value].setdefault("mean", torch.zeros_like(value))
                    mean.lerp_(value.grad, 1 - group["betas"][0])
                    value.sub_(mean.sign(), alpha=group["lr"])

def nothing(params, lr):
    return 3

def closed(params, lr):
    return torch.optim.LBFGS(params[0]["params"], lr=lr)

def wrong(params, lr):
    return {}["lr"]
"""


@pytest.fixture
def own(tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    (tmp_path / "own_optimizers.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)

    def build(name: str, **changes: Any) -> Config:
        options = changes.pop("options", {})
        return tiny(**BASE | {"optimizer": {"name": f"own_optimizers:{name}", **options}, **changes})

    return build


def test_sgd_of_the_users_own_gives_the_losses_of_that_of_local(
    own: Callable[..., Config], tiny: Callable[..., Config], play: Play
) -> None:
    config, local = own("sgd", options={"momentum": 0.9}), tiny(**BASE, local__momentum=0.9)
    ours, other = (
        read_rows(play(each, name).metrics).query("metric == 'loss'").value
        for name, each in (("own", config), ("local", local))
    )
    assert ours.to_numpy() == pytest.approx(other.to_numpy(), rel=1e-5)  # torch's fused steps round otherwise
    assert len({run_name(each) for each in (config, own("sgd", options={"momentum": 0.8}), local)}) == 3


def test_a_stopped_run_continues_with_what_it_kept(own: Callable[..., Config], play: Play, tmp_path: Path) -> None:
    config, stopped = own("Signs"), RunFolder(tmp_path / "stopped")
    whole = play(config, "whole")

    def stop(summary: RoundSummary) -> None:
        if summary.server_round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, stopped, stop)
    experiment.run(config, stopped, lambda summary: None)
    assert run_files(stopped) == run_files(whole)
    assert "own_optimizers:Signs: lr 0.01" in describe_run(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nothing", {}, "gives an int, and must give a torch.optim.Optimizer"),
        ("closed", {}, r"TypeError: .*closure"),
        ("wrong", {}, r"KeyError: 'lr' \(own_optimizers.py, line 27\)"),
        ("sgd", {"local__momentum": 0.9}, r"local.momentum = 0.9: belongs to 'sgd', 'adam' and 'adamw'"),
        ("sgd", {"local__optimizer": "adam"}, "are two optimisers; remove one"),
        ("sgd", {"engine": {"cohort": 2}}, "engine.cohort = 2: .* trains one client at a time; use 1"),
        ("sgd", {"strategy": {"name": "scaffold"}}, "'SCAFFOLD' is defined for plain SGD, and optimizer.name"),
        ("sgd", {"options": {"mass": 1}}, "unknown key 'optimizer.mass'"),
        ("sgd", {"options": {"name": "adam"}}, "'adam' cannot be used: local.optimizer = 'adam' chooses it"),
    ],
)
def test_what_cannot_train_is_refused_before_the_run(
    own: Callable[..., Config], name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment.prepare(own(name, **changes))
