"""FedLAW against the released code's optimisation of gamma and lambda, on flat vectors and a reparametrised network."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.experiment.run import prepare
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy import ClientUpdate
from strategies import FedLaw
from tests.strategies.harness import Batch, Mlp, Play, assert_close, descend, mean_of, norm_mlp

LR, EPOCHS, SIZE = 0.05, 22, 3  # after 20 epochs the step size halves


def flat(model: Params, names: list[str]) -> Tensor:
    return torch.cat([model[name].flatten() for name in names])


def unflat(vector: Tensor, like: Params, names: list[str]) -> Params:
    parts = vector.split([like[name].numel() for name in names])
    return {name: part.view_as(like[name]) for name, part in zip(names, parts, strict=True)}


def released(
    model: nn.Module,
    vectors: list[Tensor],
    sizes: list[int],
    statistics: Params,
    data: Batch,
    stream: np.random.Generator,
) -> Tensor:
    """Return gamma sum_k lambda_k w_k; statistics change in place as a network in training mode changes them."""
    names = [name for name, _ in model.named_parameters()]
    like = dict(model.named_parameters())
    optimizees = torch.tensor(
        [math.log(n / sum(sizes)) for n in sizes] + [0.0], dtype=torch.float64, requires_grad=True
    )
    optimizer = torch.optim.Adam([optimizees], lr=LR, betas=(0.5, 0.999))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    model.train()
    for _ in range(EPOCHS):
        order = torch.from_numpy(stream.permutation(7))
        for chosen in order.tensor_split(3):
            lambdas = torch.softmax(optimizees[:-1], dim=0)
            mixed = sum(torch.exp(optimizees[-1]) * lambdas[i] * vector for i, vector in enumerate(vectors))
            output = functional_call(model, unflat(mixed, like, names) | statistics, (data[0][chosen],))
            optimizer.zero_grad()
            cross_entropy(output, data[1][chosen]).backward()
            optimizer.step()
        scheduler.step()
    model.eval()
    learned = optimizees.detach()
    lambdas = torch.softmax(learned[:-1], dim=0)
    return sum(torch.exp(learned[-1]) * lambdas[i] * vector for i, vector in enumerate(vectors))


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_rounds_are_those_of_the_released_code(model: type[nn.Module]) -> None:
    options = {"epochs": EPOCHS, "weight_lr": LR, "batch_size": SIZE}
    play = Play("fedlaw", options, model=model, sizes=(5, 8, 4), rounds=2)
    data = play.strategy.server_data
    assert data is not None
    names = [name for name, _ in play.model.named_parameters()]
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        sizes = [play.sizes[client] for client in there]
        trained = [descend(play.model, expected, play.batches(server_round, client), 0.1) for client in there]
        statistics = {key: value for key, value in mean_of(trained, sizes).items() if key not in names}
        vectors, stream = [flat(each, names) for each in trained], rng(0, "server batches", server_round)
        found = released(play.model, vectors, sizes, statistics, data, stream)
        expected = expected | unflat(found, expected, names) | statistics
        kept = {key for key in expected if "num_batches" in key}  # not shared
        assert_close(
            *({k: v for k, v in each.items() if k not in kept} for each in (play.strategy.global_model, expected))
        )


def test_without_epochs_it_is_fedavg_bit_by_bit() -> None:
    learning, average = (Play(*of, model=norm_mlp) for of in (("fedlaw", {"epochs": 0}), ("full", {})))
    for server_round in learning.rounds():
        assert_close(learning.strategy.global_model, average.round(server_round), tolerance=0.0)


def test_a_client_with_the_opposite_of_what_is_right_loses_its_weight() -> None:
    network = nn.Linear(4, 3).double()
    strategy = FedLaw(network, epochs=60, weight_lr=0.1)
    inputs = torch.eye(4, dtype=torch.float64)[:3]
    strategy.server_data = inputs, torch.arange(3)
    right = {"weight": torch.eye(3, 4, dtype=torch.float64), "bias": torch.zeros(3, dtype=torch.float64)}
    wrong = {key: -value for key, value in right.items()}
    strategy.set_global_model(right)
    after = strategy.aggregate(1, [ClientUpdate(0, right, 10.0), ClientUpdate(1, wrong, 30.0)])
    # FedAvg's weight is -0.5; here the right one wins, and the factor, which may exceed 1, makes it larger.
    assert after["weight"].diagonal().min() > 0.5


def test_without_examples_of_the_server_it_is_refused(tiny) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        ConfigError, match=r"'FedLAW' learns on examples of the server, and it holds none; let data\.server"
    ):
        prepare(tiny(strategy={"name": "fedlaw"}))
    one = {"name": "digits", "train_examples": 60, "test_examples": 10, "server_examples": 1}
    with pytest.raises(ConfigError, match=r"'FedLAW' learns on examples of the server, and it holds only one; let"):
        prepare(tiny(strategy={"name": "fedlaw"}, data=one))
    with pytest.raises(ValueError, match="batch_size = 2 must be at least 3"):
        FedLaw(Mlp(), batch_size=2)
    strategy = FedLaw(Mlp())
    strategy.set_global_model(Mlp().state_dict())
    with pytest.raises(ValueError, match="set its server_data"):
        strategy.aggregate(1, [ClientUpdate(0, Mlp().state_dict(), 1.0)])


def test_the_run_gives_the_strategy_the_examples_and_no_client_has_them(tiny) -> None:  # type: ignore[no-untyped-def]
    data = {"name": "digits", "train_examples": 200, "test_examples": 60, "server_examples": 12}
    federation, strategy = prepare(tiny(strategy={"name": "FedLAW"}, data=data))
    assert strategy.server_data is not None
    inputs, targets = strategy.server_data
    assert len(inputs) == len(targets) == 12
    held = {tuple(each.flatten().tolist()) for each in inputs}
    split = federation.data.split.whole
    assert len(split.indices) == 188
    for client in range(len(split)):
        own = federation.data.client(client)
        for part in (own.train, own.validation, own.test):
            assert not held & {tuple(each.flatten().tolist()) for each in part[0]}
