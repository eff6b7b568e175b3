"""Training, analysis and strategies run on a device of its own, on which a forgotten ``.to(device)`` fails."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.alignment import derive, match_activations, match_weights, permute
from fedsim.analysis import Data, Models, barriers, measure, peaks
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import MEASURES
from fedsim.config import Config
from fedsim.experiment import run as experiment
from fedsim.federation import federation as federations
from fedsim.models.params import load_state_, state_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.training import LocalPlan, LocalSettings, LocalTask, train_, train_cohort
from fedsim.training.dropout import seeded_dropout_
from fedsim.training.evaluation import evaluate_cohort
from strategies import STRATEGIES
from tests.conftest import run_until
from tests.elsewhere import DEVICE, elsewhere
from tests.strategies.test_laws import play_of

SETTINGS = (
    LocalSettings(1, 4, 0.05, momentum=0.9, clip_norm=1.0),
    LocalSettings(1, 4, 0.05, optimizer="adamw", label_smoothing=0.1),
)
# Those that do something else from a later round on.
ROUNDS = {"ccvr": 2, "fedpart": 2, "pfedsim": 2}


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with elsewhere():
        yield


def net(seed: int = 0) -> nn.Module:
    """Return a model with statistics and dropout, on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
        )
    seeded_dropout_(model)
    return model.to(DEVICE)


def examples(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.default_rng(0)
    inputs = torch.from_numpy(stream.normal(size=(n, 1, 4, 4)).astype(np.float32))
    return inputs.to(DEVICE), (torch.arange(n) % 3).to(DEVICE)


def models() -> Models:
    return Models(net(), [state_of(net(seed)) for seed in range(3)])


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3, device=DEVICE)
    for mistake in (
        lambda: here + there,
        lambda: here.add_(there),
        lambda: nn.functional.linear(there, torch.ones(2, 3)),
        lambda: torch.where(there > 0, there, here),
        lambda: there.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            mistake()
    # A single number, copies and places of an index may be anywhere.
    assert (there * torch.tensor(2.0)).sum().item() == there.new_tensor(6.0).tolist() == 6
    assert there[torch.tensor([0, 2])].device == DEVICE
    assert here.copy_(there).device == there.cpu().device == torch.device("cpu")


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.optimizer)
def test_training_alone_and_in_a_cohort_stays_on_the_device(settings: LocalSettings) -> None:
    model, tasks = net(), [LocalTask(state_of(net()), *examples(n), np.random.default_rng(n)) for n in (12, 7)]
    done = train_(model, *examples(), LocalPlan(), settings, np.random.default_rng(12))
    together = train_cohort(net(), tasks, LocalPlan(), settings)
    for found in (state_of(model), done.optimizer_state, *(params for params, _ in together)):
        assert {value.device for value in found.values()} == {DEVICE}


def test_clients_whose_entries_come_from_the_disk_join_those_of_others() -> None:
    new = state_of(net())
    restored = {
        key: value.cpu() if "num_batches" in key or key.startswith("5") else value for key, value in new.items()
    }
    assert {value.device for value in restored.values()} == {DEVICE, torch.device("cpu")}
    for first, second in ((restored, new), (new, restored)):
        tasks = [LocalTask(params, *examples(), np.random.default_rng(0)) for params in (first, second)]
        [one, other] = train_cohort(net(), tasks, LocalPlan(), SETTINGS[0])
        assert all(torch.equal(value, other[0][key]) for key, value in one[0].items())
        assert {value.device for value in one[0].values()} == {DEVICE}
        [one_result, other_result] = evaluate_cohort(net(), [(params, *examples()) for params in (first, second)])
        assert one_result.loss == other_result.loss
    model = net(1)
    load_state_(model, restored)
    assert {value.device for value in state_of(model).values()} == {DEVICE}
    assert all(torch.equal(value, new[key]) for key, value in state_of(model).items())


def with_statistics(shape: tuple[int, ...], classes: int) -> nn.Module:
    width = 4 * shape[-2] * shape[-1]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(width, classes))


@pytest.mark.parametrize("cohort", [1, 2])
def test_a_run_that_keeps_clients_on_the_disk_resumes_on_the_device(
    cohort: int,
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(federations, "choose_device", lambda name: DEVICE)
    monkeypatch.setattr(experiment, "cohort_problem", lambda *_: "")  # it picks examples by lists, which `lazy` lacks
    engine = {"workers": 1, "cohort": cohort, "cache_bytes": 0}
    settings = {"rounds": 3, "participation": 0.5, "checkpoint_every": 1, "barriers": {"every": 0}, "engine": engine}
    strategy, model = {"name": "fedper"}, {"name": f"{__name__}:with_statistics"}
    config, folder = tiny(clients=6, strategy=strategy, model=model, **settings), RunFolder(tmp_path / "run")
    run_until(config, folder, 2)
    experiment.run(config, folder, lambda summary: None)
    assert len(read_rows(folder.faults)) == 0
    assert "rounds 3 to 3" in caplog.text
    assert "failed as a cohort" not in caplog.text  # each of its clients would be tried alone


def test_barriers_are_measured_on_the_device() -> None:
    inputs, targets = examples(150)
    for data in (Data(inputs, targets, stratified_from=1000), Data(inputs, targets, tolerance=0.5)):
        table = barriers(models(), data, groups=["layers", "full"], against="average", bands=0.9)
        assert table["loss"].notna().all()
    assert len(peaks(measure(models(), Data(*examples()), groups="full", against="pairs", ts=(0, 0.5, 1))))


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_taken_on_the_device(name: str) -> None:
    data = Data(*examples()) if MEASURES[name].on_data else None
    assert len(MEASURES[name].table(models(), Settings(data, groups="layers", start=state_of(net(3)))))


def test_units_are_matched_on_the_device() -> None:
    model, (inputs, _) = net(), examples()
    reference, params = state_of(model), state_of(net(1))
    derivation = derive(model, inputs)
    for permutation in (
        match_weights(derivation.spec, reference, params, rng=np.random.default_rng(0)).permutation,
        match_activations(derivation, reference, params, inputs),
    ):
        moved = permute(params, derivation.spec, permutation)
        assert {value.device for value in moved.values()} == {DEVICE}


def test_what_processes_share_is_in_main_memory(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federations, "choose_device", lambda name: DEVICE)
    federation = federations.federation_of(tiny(model={"name": "mlp", "freeze": "first:1"}))
    parts, train = federation.shared_parts(), federation.data.dataset.train
    assert {train.inputs.device, *(value.device for value in federation.frozen().values())} == {DEVICE}
    shared = [parts.data.dataset.train.inputs, parts.data.dataset.test.targets, *parts.frozen.values()]
    assert {value.device for value in shared} == {torch.device("cpu")}
    assert len(shared) == 4


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_of_a_strategy_stays_on_the_device(name: str) -> None:
    play = play_of(name, sizes=(2, 3), absent={}, device=DEVICE)
    for server_round in range(1, 1 + ROUNDS.get(name, 1)):
        play.round(server_round)
    assert {value.device for value in play.strategy.global_model.values()} == {DEVICE}
