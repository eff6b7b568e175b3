"""A custom loss that compares the examples of a batch, as Cox's partial likelihood does, is measured on all at once."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.analysis import Data, Models, barriers, prediction
from fedsim.config import Config
from fedsim.experiment import run as experiment
from fedsim.experiment.api import load
from fedsim.federation.federation import federation_of
from fedsim.results.folder import RunFolder
from fedsim.training import cohort_problem

LOSS = """
import torch


def cox(outputs, targets):
    time, event = targets[:, 0], targets[:, 1]
    at_risk = time[None, :] >= time[:, None]
    return event * (torch.where(at_risk, outputs[None, :, 0], -torch.inf).logsumexp(1) - outputs[:, 0])


def absolute(outputs, targets):
    return (outputs - targets).abs().sum(1)
"""


@pytest.fixture
def survival(tmp_path: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Config]:
    """Build a config of survival times, with more test examples than a batch of evaluation has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "risks.py").write_text(LOSS)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(900, 4)).astype(np.float32)
    times, censored = rng.exponential(np.exp(-inputs[:, 0])), rng.exponential(2, 900)
    targets = np.stack([np.minimum(times, censored), times <= censored], 1).astype(np.float32)
    parts = {"train": slice(720), "test": slice(720, None)}
    arrays = {"inputs": inputs, "targets": targets}
    np.savez("survival.npz", **{f"{part}_{name}": arrays[name][at] for part, at in parts.items() for name in arrays})

    def build(name: str) -> Config:
        return tiny(
            data={"name": "arrays", "path": str(tmp_path / "survival.npz")},
            partition={"scheme": "quantity", "alpha": 1.0},
            model={"name": "mlp", "hidden": [8]},
            loss={"name": f"risks:{name}"},
            clients=3,
            rounds=1,
            barriers={"every": 1, "groups": ["full"], "on": ["clients", "server"], "tolerance": 0.1},
            evaluation={"perturbed": ["noise:1e-9"]},
        )

    return build


def of_whole(outputs: Tensor, targets: Tensor) -> float:
    """Return the negative log partial likelihood by example, one after the other."""
    terms = [
        outputs[targets[:, 0] >= time, 0].exp().sum().log() - output if event else torch.zeros(())
        for output, (time, event) in zip(outputs[:, 0], targets, strict=True)
    ]
    return float(torch.stack(terms).mean())


def test_it_is_that_of_each_client_and_of_the_server(
    survival: Callable[[str], Config], play: Callable[..., RunFolder]
) -> None:
    config = survival("cox")
    folder = play(config)
    experiment.complete(folder)
    [run], federation = load(folder.path), federation_of(config)
    model, losses = run.model(), run.metrics[run.metrics["metric"] == "loss"]
    tests = {None: federation.data.test()} | {client: federation.data.client(client).test for client in range(3)}
    assert len(tests[None][1]) > 125  # the examples of a batch
    for client, (inputs, targets) in tests.items():
        is_there = losses["client"].isna() if client is None else losses["client"] == client
        found = losses[is_there & (losses["model"] == "global")]
        assert set(found["split"]) == {"test"} | ({"noise:1e-9"} if client is None else set())
        with torch.no_grad():
            assert found["value"].to_numpy() == pytest.approx(of_whole(model(inputs), targets), rel=1e-5)
    on_server = run.barriers[run.barriers["data"] == "server"]
    sample, targets = tests[None][0][: on_server["n"].iloc[0]], tests[None][1][: on_server["n"].iloc[0]]
    assert len(sample) == len(tests[None][1])  # whatever the tolerance
    with torch.no_grad():
        assert on_server["loss"].to_numpy() == pytest.approx(of_whole(model(sample), targets), rel=1e-5)


def test_clients_train_one_at_a_time_and_slopes_are_of_the_whole(survival: Callable[[str], Config]) -> None:
    federation = federation_of(survival("cox"))
    inputs, targets = federation.data.test()
    problem = cohort_problem(federation.model(), inputs, targets, federation.objective)
    assert problem == "the loss of an example depends on the others of its mini-batch"
    first = federation.model().state_dict()
    second = {key: value * 1.1 for key, value in first.items()}
    models, data = Models(federation.model(), [first, second]), Data(inputs, targets, federation.criterion)
    predicted = prediction(models, data, groups="full", against="pairs", measured=False)["loss_predicted"]
    measured = barriers(models, data, groups="full", against="pairs", ts=(0.5,))["loss_swap_ends"]
    assert predicted.to_numpy() == pytest.approx(measured.to_numpy(), rel=1e-3)


def test_a_loss_of_each_example_is_measured_in_batches(survival: Callable[[str], Config]) -> None:
    federation = federation_of(survival("absolute"))
    assert not federation.objective.of_batch
    assert not cohort_problem(federation.model(), *federation.data.test(), federation.objective)
