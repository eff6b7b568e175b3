"""Per-FedAvg against the released optimiser's two steps and their undoing, written down plainly."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.models.params import Params
from tests.strategies.harness import Batch, Mlp, Play, assert_close, descend, mean_of, network_of, norm_mlp

LR = 0.1


def meta_descend(model: nn.Module, params: Params, batches: list[Batch], inner_lr: float, split: bool) -> Params:
    """Step on one half, take the gradient on the other there, go back, and step along it, as PFLlib does."""
    network = network_of(model, params)
    for inputs, targets in batches:
        half = (len(inputs) + 1) // 2
        # A mini-batch of one example has no second half.
        first, second = (slice(half), slice(half if len(inputs) > 1 else 0, None)) if split else (slice(None),) * 2
        adapted = copy.deepcopy(network)
        cross_entropy(adapted(inputs)[first], targets[first]).backward()
        with torch.no_grad():
            for weight in adapted.parameters():
                weight -= inner_lr * weight.grad
        # Running statistics count each mini-batch once.
        for own, kept in zip(adapted.buffers(), network.buffers(), strict=True):
            own.copy_(kept)
        adapted.zero_grad()
        cross_entropy(adapted(inputs)[second], targets[second]).backward()
        with torch.no_grad():
            for weight, there in zip(network.parameters(), adapted.parameters(), strict=True):
                weight -= LR * there.grad
            for kept, own in zip(network.buffers(), adapted.buffers(), strict=True):
                kept.copy_(own)
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "model"),
    [({"inner_lr": 0.4}, Mlp), ({"inner_lr": 0.4, "split": False}, Mlp), ({}, norm_mlp)],
)
def test_rounds_are_those_of_the_released_optimiser(options: dict, model: type[nn.Module]) -> None:
    # Mini-batches of 3, 2 and 1 examples: of odd ones the inner half is the larger.
    play = Play("perfedavg", options, model=model, sizes=(5, 8, 4))
    inner_lr, split = ({"inner_lr": LR, "split": True} | options).values()
    averaged = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = []
        for client in there:
            trained.append(meta_descend(play.model, averaged, play.batches(server_round, client), inner_lr, split))
            sent = play.uploaded(client)
            assert_close(sent, {key: trained[-1][key] for key in sent})
        averaged = averaged | mean_of(trained, [play.sizes[client] for client in there])
        assert_close(play.strategy.global_model, averaged)


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_without_an_inner_step_on_whole_batches_it_is_fedavg_bit_by_bit(model: type[nn.Module]) -> None:
    options = {"inner_lr": 0.0, "split": False}
    play, average = Play("perfedavg", options, model=model), Play("full", model=model)
    for server_round in play.rounds():
        assert_close(play.strategy.global_model, average.round(server_round), tolerance=0.0)


def test_the_inner_gradient_and_the_outer_one_are_of_different_examples() -> None:
    """If the inner half decides nothing, the model learns from the outer one only."""

    still, moving = (Play("perfedavg", {"inner_lr": lr}, sizes=(2, 2, 2)) for lr in (0.0, 0.5))
    still.round(1)
    moving.round(1)
    batches = still.batches(1, 0)
    second = [(inputs[1:], targets[1:]) for inputs, targets in batches]
    assert_close(still.uploaded(0), descend(still.model, still.initial, second, LR))
    assert not torch.equal(still.uploaded(0)["fc3.bias"], moving.uploaded(0)["fc3.bias"])


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_client_is_evaluated_after_steps_on_its_training_examples(steps: int) -> None:
    play = Play("perfedavg", {"inner_lr": 0.3, "evaluation_steps": steps}, sizes=(3, 2, 3), model=norm_mlp)
    play.round(1)
    for client in range(3):
        # A mini-batch holds all examples of a client here, in some order.
        network = network_of(play.model, play.strategy.global_model).eval()
        inputs, targets = play.train_set(client)
        for _ in range(steps):
            network.zero_grad()
            cross_entropy(network(inputs), targets).backward()
            with torch.no_grad():
                for weight in network.parameters():
                    weight -= 0.3 * weight.grad
        found, trained = play.personalised(client), dict(network.named_parameters())
        assert_close({key: found[key] for key in trained}, trained)
        assert not set(play.kept(client)) - {"model"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": -0.1}, r"inner_lr = -0\.1 must be at least 0"),
        ({"evaluation_steps": -1}, "evaluation_steps = -1 must be at least 0"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Play("perfedavg", options)
