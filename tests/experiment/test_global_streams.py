"""Code of a user's own that draws from the global streams of torch, NumPy and Python gives the same each time."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.data.dataset import Dataset, Examples
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.restored import restored_model
from fedsim.federation import data as data_of_runs
from fedsim.federation.federation import federation_of
from fedsim.models.draws import same_draws
from fedsim.models.params import Params
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Step, Strategy
from partitions import Partition
from tests.conftest import run_until

HERE = "tests.experiment.test_global_streams"
CLASSES = ("even", "odd")


def examples(*, order: str = "numpy") -> Dataset:
    """Return numbers in a random order, the last third to test on."""
    inputs = torch.arange(60.0)[:, None] / 30 - 1
    draw: dict[str, Callable[[], Any]] = {
        "numpy": lambda: torch.from_numpy(np.random.permutation(60)),
        "torch": lambda: torch.randperm(60),
        "python": lambda: torch.tensor(random.sample(range(60), 60)),
        "system": lambda: torch.from_numpy(np.random.default_rng().permutation(60)),
    }
    chosen = draw[order]()
    train, test = (Examples(inputs[part], part % 2) for part in (chosen[:40], chosen[40:]))
    return Dataset("numbers", train, test, CLASSES)


def shares(labels: np.ndarray, clients: int, rng: np.random.Generator) -> Partition:
    """Split examples by NumPy's global stream."""
    return Partition(np.random.permutation(len(labels)), np.linspace(0, len(labels), clients + 1).astype(np.int64))


def noisy(inputs: Tensor, client: int, clients: int, rng: np.random.Generator) -> Tensor:
    """Add noise of torch's global stream for one client."""
    return inputs + torch.randn_like(inputs) if client == 2 else inputs


def drawn_by_others(inputs: Tensor, client: int, clients: int, rng: np.random.Generator, *, by: str = "") -> Tensor:
    """Add noise of its own stream, while the global one moves as if another thread drew from it."""
    if by:
        torch.rand(())
    return inputs + float(rng.normal())


class Net(nn.Module):
    """Draws weights from NumPy's stream, and a factor of its inputs as it trains from Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(1, 5), nn.Linear(5, 2)
        self.fc.weight.data.copy_(torch.from_numpy(np.random.randn(5, 1)))

    def forward(self, x: Tensor) -> Tensor:
        factor = 1 + random.random() * np.random.rand() if self.training else 1.0
        return self.head(torch.tanh(self.fc(x * factor)))


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a new model."""
    return Net()


class DrawingRule(ClientRule):
    """Draws from the streams in each of its hooks."""

    def start(self, local: Local) -> Local:
        return replace(local, params={key: value + drawn() for key, value in local.params.items()})

    def gradient(self, step: Step, gradients: Params) -> Params:
        # Of a whole cohort at once, where torch draws nothing.
        return {key: value + 0.01 * (np.random.randn() + random.random()) for key, value in gradients.items()}

    def finish(self, local: Local, started: Local) -> Finished:
        finished = Finished({key: value + drawn() for key, value in local.params.items()})
        for let_be_anywhere in (torch.seed, np.random.seed, random.seed):  # as in a worker that had other clients
            let_be_anywhere()
        return finished


class Drawing(Strategy, shared="all"):
    """Draws in the server's hooks too."""

    client_rule = DrawingRule

    def for_client(self, server_round: int, client: int) -> Params:
        return {key: value + drawn() for key, value in super().for_client(server_round, client).items()}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        return {key: value + drawn() for key, value in super().aggregate(server_round, updates).items()}


def drawn() -> float:
    """Return a little noise of all three streams."""
    return 0.01 * (float(torch.randn(())) + np.random.randn() + random.random())


@pytest.fixture
def forget() -> Iterator[Callable[[int], None]]:
    """Let the streams be elsewhere and no data be known, as in another process."""
    states = np.random.get_state(), random.getstate()

    def forget(seed: int) -> None:
        np.random.seed(seed)
        random.seed(seed)
        torch.manual_seed(seed)
        for known in (data_of_runs._read, data_of_runs._split, data_of_runs._fitted):
            known.cache_clear()

    with torch.random.fork_rng():
        yield forget
    np.random.set_state(states[0])
    random.setstate(states[1])


@pytest.fixture
def config(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """Build a config of such code."""

    def build(**data: Any) -> Config:
        return tiny(
            data={"name": f"{HERE}:examples", **data},
            partition={"scheme": f"{HERE}:shares"},
            model={"name": f"{HERE}:build"},
            barriers={"every": 0},
        )

    return build


@pytest.mark.parametrize("order", ["numpy", "torch", "python"])
def test_data_partition_and_initial_model_are_the_same_in_every_process(
    order: str, config: Callable[..., Config], forget: Callable[[int], None]
) -> None:
    found = []
    for seed in (1, 2):
        forget(seed)
        before = np.random.get_state()[2], random.getstate(), torch.get_rng_state()
        found.append(federation_of(config(order=order)))
        assert before[:2] == (np.random.get_state()[2], random.getstate())
        assert torch.equal(before[2], torch.get_rng_state())
    one, other = found
    assert torch.equal(one.data.dataset.train.inputs, other.data.dataset.train.inputs)
    assert np.array_equal(one.data.split.train.indices, other.data.split.train.indices)
    assert torch.equal(one.initial["fc.weight"], other.initial["fc.weight"])
    assert not torch.equal(one.data.dataset.train.inputs, one.data.dataset.train.inputs.sort(0).values)
    reseeded = federation_of(config(order=order).model_copy(update={"seed": 1}))
    assert not torch.equal(one.initial["fc.weight"], reseeded.initial["fc.weight"])
    assert torch.equal(one.data.dataset.train.inputs, reseeded.data.dataset.train.inputs)


def test_a_resumed_run_draws_what_it_would_have_drawn(
    config: Callable[..., Config], forget: Callable[[int], None], tmp_path: Path
) -> None:
    folders = [RunFolder(tmp_path / name) for name in ("whole", "resumed")]
    forget(1)
    before = random.getstate()
    experiment.run(config(), folders[0], lambda summary: None)
    assert random.getstate() == before
    forget(2)
    run_until(config(), folders[1], 1)
    forget(3)
    experiment.run(config(), folders[1], lambda summary: None)
    whole, resumed = (restored_model(folder).state_dict() for folder in folders)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.parametrize("cohort", [1, 4])
def test_a_method_that_draws_gives_the_same_after_a_resume(
    cohort: int, tiny: Callable[..., Config], forget: Callable[[int], None], tmp_path: Path
) -> None:
    config = tiny(strategy={"name": f"{HERE}:Drawing"}, barriers__every=0, engine__cohort=cohort)
    folders = [RunFolder(tmp_path / name) for name in ("whole", "resumed")]
    forget(1)
    experiment.run(config, folders[0], lambda summary: None)
    forget(2)
    run_until(config, folders[1], 1)
    forget(3)
    experiment.run(config, folders[1], lambda summary: None)
    whole, resumed = (restored_model(folder).state_dict() for folder in folders)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert read_rows(folders[0].metrics)["value"].equals(read_rows(folders[1].metrics)["value"])


class CarefulRule(ClientRule):
    """Draws from its own stream, but for weights of a module, which are replaced by a client's."""

    def network(self, model: nn.Module) -> nn.Module:
        nn.Linear(2, 2)
        return model

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished({key: value + float(local.rng.normal()) for key, value in local.params.items()})


class Careful(Strategy, shared="all"):
    """Draws in the clients only."""

    client_rule = CarefulRule


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(("name", "workers", "count"), [("Drawing", 2, 1), ("Drawing", 1, 0), ("Careful", 2, 0)])
def test_a_method_that_draws_in_several_threads_is_noticed(
    name: str,
    workers: int,
    count: int,
    rounds: int,
    tiny: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = {"strategy": {"name": f"{HERE}:{name}"}, "evaluation": {"models": ["personalised", "global", "trained"]}}
    config = tiny(rounds=rounds, barriers__every=0, engine__workers=workers, **changes)
    experiment.run(config, RunFolder(tmp_path / "run"), lambda summary: None)
    assert caplog.text.count("draws from a global random stream in a client, and 2 threads share it") == count


def test_the_streams_of_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds all devices"))
    with same_draws(seed=3):
        assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(3)))


def test_a_run_whose_data_are_others_when_it_resumes_is_refused(
    config: Callable[..., Config], forget: Callable[[int], None], tmp_path: Path
) -> None:
    folder = run_until(config(order="system"), RunFolder(tmp_path / "run"), 1)
    forget(1)
    with pytest.raises(
        ConfigError, match=r"began with other values of data.name = .*examples' than its code gives now"
    ):
        experiment.run(config(order="system"), folder, lambda summary: None)


def test_a_skew_that_draws_from_a_global_stream_is_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"noisy' draws from a global random stream, .* its argument rng"):
        federation_of(tiny(features={"skew": f"{HERE}:noisy"}))


def test_of_many_clients_some_are_tried_before_the_start_and_others_when_their_inputs_are_made(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_of_runs, "CHECKED", 2)
    data = federation_of(tiny(features={"skew": f"{HERE}:noisy"})).data  # which tries the first and the last
    assert data.client(1).train[0].isfinite().all()
    for part in ("train", "validation", "test"):
        with pytest.raises(ConfigError, match=r"noisy' draws from a global random stream, .* its argument rng"):
            getattr(data.client(2), part)


def test_a_skew_is_not_blamed_for_what_another_thread_draws(tiny: Callable[..., Config]) -> None:
    data = federation_of(tiny(features={"skew": f"{HERE}:drawn_by_others"})).data
    with_draws = tiny(features={"skew": f"{HERE}:drawn_by_others", "by": "torch"})
    with pytest.raises(ConfigError, match="draws from a global random stream"):
        federation_of(with_draws)
    inputs = replace(data, config=with_draws).client(1).train[0]
    assert torch.equal(inputs, data.client(1).train[0])
