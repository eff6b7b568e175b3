"""Embeddings with sparse gradients train as in plain torch, alone and in cohorts."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from fedsim.models.params import Params, state_of
from fedsim.training import (
    SGD,
    ClientRule,
    LocalPlan,
    LocalTask,
    Phase,
    Ruled,
    cohort_problem,
    train_,
    train_cohort,
)
from fedsim.training.rule import Step

PLAIN = SGD(epochs=2, batch_size=4, lr=0.1)
MOMENTUM = SGD(epochs=2, batch_size=4, lr=0.1, momentum=0.9, nesterov=True)
DECAY = SGD(epochs=2, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.01)


class Functional(nn.Module):
    """Uses the function instead of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(30, 4, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(tokens, self.table, sparse=True).mean(1)


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    first: dict[str, nn.Module] = {
        "embedding": nn.Sequential(nn.Embedding(30, 4, sparse=True, padding_idx=0), nn.Flatten(), nn.Linear(20, 4)),
        "bag": nn.EmbeddingBag(30, 4, mode="sum", sparse=True),
        "function": Functional(),
        "by frequency": nn.Sequential(nn.Embedding(9, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(20, 4)),
        "bag by frequency": nn.EmbeddingBag(9, 4, mode="mean", scale_grad_by_freq=True),
    }
    return nn.Sequential(first[kind], nn.Linear(4, 3)).double()


def tokens(n: int = 11, count: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Most of the 30 tokens are in few batches or none, where momentum continues.
    return torch.randint(0, count, (n, 5), generator=generator), torch.randint(0, 3, (n,), generator=generator)


def plain_torch(
    model: nn.Module, settings: SGD, pull: float = 0.0, data: tuple[Tensor, Tensor] | None = None
) -> nn.Module:
    """Train a copy with `torch.optim.SGD`; weight decay, which it refuses for sparse gradients, is added by hand."""
    model, (inputs, targets), rng = copy.deepcopy(model), data or tokens(), np.random.default_rng(3)
    start = [value.detach().clone() for value in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    for _ in range(settings.epochs):
        for batch in torch.from_numpy(rng.permutation(len(targets))).split(settings.batch_size):
            optimiser.zero_grad()
            cross_entropy(model(inputs[batch]), targets[batch]).backward()
            for value, anchor in zip(model.parameters(), start, strict=True):
                if settings.weight_decay or pull:
                    value.grad = value.grad.to_dense() + settings.weight_decay * value.detach()
                    value.grad += pull * (value.detach() - anchor)
            optimiser.step()
    return model


def check_equal(found: Params, expected: nn.Module) -> None:
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["embedding", "bag", "function"])
@pytest.mark.parametrize("settings", [PLAIN, MOMENTUM, DECAY], ids=["plain", "momentum", "decay"])
@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_a_step_with_sparse_gradients_is_that_of_plain_torch(kind: str, settings: SGD, pull: float) -> None:
    model = build(kind)
    expected = plain_torch(model, settings, pull)
    train_(model, *tokens(), LocalPlan((Phase(proximal=pull),)), settings, np.random.default_rng(3))
    check_equal(model.state_dict(), expected)


@pytest.mark.parametrize("kind", ["embedding", "bag", "function"])
@pytest.mark.parametrize("settings", [PLAIN, DECAY], ids=["plain", "decay"])
def test_a_cohort_with_sparse_gradients_trains_as_plain_torch(kind: str, settings: SGD) -> None:
    model = build(kind)
    assert cohort_problem(model, *tokens()) is None
    expected = plain_torch(model, settings)
    tasks = [LocalTask(state_of(copy.deepcopy(model)), *tokens(), np.random.default_rng(3)) for _ in range(2)]
    for found, _ in train_cohort(model, tasks, LocalPlan(), settings):
        check_equal(found, expected)


@pytest.mark.parametrize("kind", ["by frequency", "bag by frequency"])
def test_members_of_a_cohort_count_the_tokens_of_their_own_examples(kind: str) -> None:
    model = build(kind)
    tasks = [LocalTask(state_of(model), *tokens(n, 9), np.random.default_rng(3)) for n in (7, 5, 11)]
    found = train_cohort(model, tasks, LocalPlan(), PLAIN)
    for n, (state, _) in zip((7, 5, 11), found, strict=True):
        check_equal(state, plain_torch(model, PLAIN, data=tokens(n, 9)))


@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, optimizer="adamw", weight_decay=0.1),
        replace(PLAIN, clip_norm=0.1),
        replace(PLAIN, lr_scale={"head": 3.0}, schedule="cosine"),
    ],
    ids=["adamw", "clipped", "scaled"],
)
def test_sparse_gradients_give_the_steps_of_dense_ones(settings: SGD) -> None:
    sparse, dense = build("embedding"), build("embedding")
    dense[0][0].sparse = False
    for model in (sparse, dense):
        train_(model, *tokens(), LocalPlan(), settings, np.random.default_rng(3))
    check_equal(sparse.state_dict(), dense)


class _Decays(ClientRule):
    """Computes with gradients what only dense ones can take."""

    def gradient(self, step: Step, gradients: Params) -> Params:
        params = {key: step.params[key].detach() for key in gradients}
        again, _ = step.gradient(lambda moved: step.cross_entropy(step.logits(moved)), params)
        return {key: (value + again[key]) / 2 + step.params[key] for key, value in gradients.items()}


def test_a_rule_sees_dense_gradients() -> None:
    # Adding the parameters to their gradient is a weight decay of 1.
    model = build("embedding")
    expected = plain_torch(model, SGD(2, 4, 0.1, weight_decay=1.0))
    cohort = [
        LocalTask(state_of(copy.deepcopy(model)), *tokens(), np.random.default_rng(3), ruled=Ruled(_Decays()))
        for _ in range(2)
    ]
    trained = copy.deepcopy(model)
    train_(trained, *tokens(), LocalPlan(), PLAIN, np.random.default_rng(3), ruled=Ruled(_Decays()))
    check_equal(trained.state_dict(), expected)
    for found, _ in train_cohort(model, cohort, LocalPlan(), PLAIN):
        check_equal(found, expected)
