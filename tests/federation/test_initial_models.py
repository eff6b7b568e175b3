"""Clients that start from initial models of their own."""

import shutil
from collections.abc import Callable

import pytest
import torch

from fedsim.config import Config
from fedsim.experiment import run as experiment
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.federation.federation import Federation, federation_of
from fedsim.models.params import Params, state_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result
from fedsim.seeds import rng
from fedsim.training import LocalPlan, train_
from tests.conftest import run_files

OWN = {"name": "mlp", "hidden": [12], "initial": "own"}


def trained_alone(federation: Federation, client: int, start: Params) -> Params:
    """Train a client's model for the first round as one would write it down."""
    model = federation.model()
    model.load_state_dict(start)
    stream = rng(federation.config.seed, "train", 1, client)
    train_(model, *federation.data.client(client).train, LocalPlan(), federation.config.local.settings, stream, {})
    return {key: value.clone() for key, value in state_of(model).items()}


def test_each_client_has_its_own_and_the_server_another(tiny: Callable[..., Config]) -> None:
    federation, shared = federation_of(tiny(model=OWN)), federation_of(tiny())
    models = [federation.initial, *(federation.initial_of(client) for client in range(4))]
    weights = torch.stack([model["fc1.weight"].flatten() for model in models])
    assert torch.corrcoef(weights).fill_diagonal_(0).abs().max() < 0.2
    assert all(a.equal(b) for a, b in zip(shared.initial.values(), federation.initial.values(), strict=True))
    assert shared.initial_of(3) is shared.initial


def test_drawing_one_leaves_torchs_stream_as_it_was_and_gives_the_same_again(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(model=OWN))
    before = torch.get_rng_state()
    first, again = federation.initial_of(2), federation.initial_of(2)
    assert torch.get_rng_state().equal(before)
    assert all(first[key].equal(again[key]) for key in first)


def test_a_first_round_trains_each_client_from_its_own(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(rounds=1, model=OWN, strategy={"name": "layer_set", "shared": "head"}, barriers={"every": 0})
    federation = federation_of(config)
    final = Checkpoints(play(config).checkpoints).global_model(1)
    trained = [trained_alone(federation, client, federation.initial_of(client)) for client in range(4)]
    sizes = [len(federation.data.split.train[client]) for client in range(4)]
    average = sum(n * each["fc2.weight"].double() for n, each in zip(sizes, trained, strict=True)) / sum(sizes)
    assert torch.allclose(final["fc2.weight"], average.float(), rtol=1e-5, atol=1e-7)
    assert final["fc1.weight"].equal(federation.initial["fc1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["none", "head"])
def test_a_run_that_continues_and_one_on_more_threads_have_the_same_bytes(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], shared: str
) -> None:
    # Half of the clients take part in a round, so that some begin after the interruption.
    settings = {"model": OWN, "strategy": {"name": "layer_set", "shared": shared}, "participation": 0.5}
    whole = play(tiny(rounds=4, **settings), "whole")
    broken = play(tiny(rounds=2, **settings), "broken")
    experiment.run(tiny(rounds=4, **settings), broken, lambda summary: None)
    threads = play(tiny(rounds=4, engine__workers=3, **settings), "threads")
    assert run_files(broken) == run_files(whole) == run_files(threads)


def test_models_that_start_apart_lie_apart_and_the_paper_calls_this_a_barrier(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    partition = {"scheme": "copies"}
    settings = {"clients": 2, "partition": partition, "strategy": {"name": "local"}, "local__epochs": 8, "rounds": 1}
    barriers = {"every": 1, "groups": ["full"], "examples": 60}
    own, shared = (
        read_result(play(tiny(model=OWN | {"initial": initial}, barriers=barriers, **settings), initial))
        for initial in ("own", "shared")
    )
    full = [result.barriers["loss_mean_ends"].max() for result in (own, shared)]
    assert full[0] > 0.3
    assert abs(full[1]) < 0.05
    assert read_rows(own.folder.metrics)["value"].notna().all()
    shutil.rmtree(own.folder.path)


def test_lazy_models_of_clients_own_come_from_the_seed(tiny: Callable[..., Config]) -> None:
    config = tiny(model={"name": "tests.models.tensors:lazy", "initial": "own"})
    drawn = [federation_of(config).initial_of(client)["4.weight"] for client in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], federation_of(config).initial["4.weight"])
