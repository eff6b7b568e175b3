"""A client whose training loss or kept state is not finite is named, and a run in which every loss is missing fails."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.config import Config
from fedsim.errors import DivergedError
from fedsim.experiment import run as experiment
from fedsim.federation.client import app as client_module
from fedsim.federation.federation import federation_of
from fedsim.results.faults import faults_of_run
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.training import Training

Report = Callable[[Training], Training]


def without_loss(training: Training) -> Training:
    return dataclasses.replace(training, loss=math.nan)


def with_broken_state(training: Training) -> Training:
    state = {key: torch.full_like(value, math.inf) for key, value in training.optimizer_state.items()}
    return dataclasses.replace(training, optimizer_state=state)


def with_broken_sets(training: Training) -> Training:
    sets = {
        name: {key: torch.full_like(value, math.nan) for key, value in entries.items()}
        for name, entries in training.sets.items()
    }
    return dataclasses.replace(training, sets=sets)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change what training reports of some clients, all by default."""

    def patch(config: Config, change: Report, *clients: int) -> None:
        data = federation_of(config).data
        chosen = {data.client(client).train[0].sum().item() for client in clients or range(config.clients)}
        alone, together = client_module.train_, client_module.train_cohort

        def changed(inputs: torch.Tensor, training: Training) -> Training:
            return change(training) if inputs.sum().item() in chosen else training

        def train(model: torch.nn.Module, inputs: torch.Tensor, *rest: Any, **options: Any) -> Training:
            return changed(inputs, alone(model, inputs, *rest, **options))

        def train_all(model: torch.nn.Module, tasks: Any, *rest: Any) -> Any:
            every = zip(tasks, together(model, tasks, *rest), strict=True)
            return [(params, changed(task.inputs, training)) for task, (params, training) in every]

        monkeypatch.setattr(client_module, "train_", train)
        monkeypatch.setattr(client_module, "train_cohort", train_all)

    return patch


def body_kept(tiny: Callable[..., Config], **changes: Any) -> Config:
    """Return a run whose clients keep their bodies, and that is evaluated in its last round only."""
    rare = {"rounds": 6, "evaluate_every": 6, "barriers": {"every": 0}, "clients": 4}
    return tiny(**rare, strategy={"name": "layer_set", "shared": "head"}, **changes)


@pytest.mark.parametrize("cohort", [1, 4])
@pytest.mark.parametrize(
    ("change", "settings", "stage", "reason", "text"),
    [
        (without_loss, {}, "loss", "its training loss is not finite", "training loss of client 2 not finite"),
        (
            with_broken_state,
            {"local": {"lr": 0.1, "batch_size": 16, "momentum": 0.9, "optimizer_state": "keep"}},
            "personal",
            "its optimiser state is not finite",
            "personal state of client 2 not finite",
        ),
        (
            with_broken_sets,
            {"strategy": {"name": "ditto"}},
            "personal",
            "its set personal is not finite",
            "personal state of client 2 not finite",
        ),
    ],
)
def test_what_of_a_client_is_not_finite_is_named(
    cohort: int,
    change: Report,
    settings: dict[str, Any],
    stage: str,
    reason: str,
    text: str,
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    spoil: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny(rounds=1, barriers={"every": 0}, engine={"cohort": cohort, "workers": 1}, **settings)
    spoil(config, change, 2)
    folder = play(config)
    rows = read_rows(folder.faults).query("stage != 'evaluate'")
    assert rows[["client", "stage", "reason"]].to_numpy().tolist() == [[2, stage, reason]]
    assert f"round 1: client 2 has diverged: {reason}" in caplog.messages
    assert text in faults_of_run(folder, 1)


@pytest.mark.parametrize("cohort", [1, 4])
def test_a_run_whose_training_losses_are_all_missing_fails_without_an_evaluation(
    cohort: int, tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Callable[..., None], tmp_path: Path
) -> None:
    config = body_kept(tiny, engine={"cohort": cohort, "workers": 1})
    spoil(config, without_loss)
    expected = r"^round 1: no client has a finite loss after training; .*its training loss is not finite; a lower local"
    with pytest.raises(DivergedError, match=expected):
        play(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_it_fails_once_the_last_client_has_lost_its_loss_also_when_resumed(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Callable[..., None], tmp_path: Path
) -> None:
    config = body_kept(tiny, participation=0.5)
    spoil(config, without_loss)
    with pytest.raises(DivergedError, match=r"^round \d: no client has a finite loss after training") as whole:
        play(config)
    lost = int(str(whole.value).split()[1].rstrip(":"))
    assert lost > 1  # two of four clients take part
    shorter = config.model_copy(update={"rounds": lost - 1})
    experiment.run(shorter, RunFolder(tmp_path / "stopped"), lambda summary: None)
    with pytest.raises(DivergedError, match=f"^round {lost}: "):
        play(config, "stopped")


def test_a_run_continues_as_long_as_one_client_has_a_loss(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Callable[..., None]
) -> None:
    config = body_kept(tiny)
    spoil(config, without_loss, 0, 1, 3)
    faults = read_rows(play(config).faults)
    assert set(faults["client"]) == {0, 1, 3}
    assert set(faults["round"]) == set(range(1, 7))
