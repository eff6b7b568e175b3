"""Evaluation of many models at once; that of one is tested with training."""

import copy
import math

import pytest
import torch

from fedsim.models.params import Params, load_state_, state_of
from fedsim.training.evaluation import _buckets, cross_entropies, evaluate, evaluate_cohort
from tests.models.test_architectures import CLASSES, ZOO, batch, build

SIZES = (3, 11, 1, 4, 5, 2)
Member = tuple[Params, torch.Tensor, torch.Tensor]


def members_of(name: str, norm: str | None = None) -> list[Member]:
    shape = ZOO[name].shape
    members = []
    for k, n in enumerate(SIZES):
        params = {key: value * (1 + 0.1 * k) for key, value in state_of(build(name, norm)).items()}
        targets = torch.randint(CLASSES, (n, *(shape if len(shape) == 1 else ())))
        members.append((params, batch(shape, n) + (k if len(shape) == 3 else 0), targets))
    return members


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 18, 1000])  # of all members at a time
@pytest.mark.parametrize(("name", "norm"), [("lenet5", None), ("resnet20", "batch"), ("gpt", None), ("vit", None)])
def test_many_models_are_evaluated_as_each_alone(
    name: str, norm: str | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(build(name, norm)).train()
    members = members_of(name, norm)
    monkeypatch.setattr("fedsim.training.evaluation.EVALUATION_BATCH", rows)
    found = evaluate_cohort(model, members)
    assert model.training
    for (params, inputs, targets), result in zip(members, found, strict=True):
        alone = copy.deepcopy(model)
        load_state_(alone, params)
        expected = evaluate(alone, inputs, targets)
        assert result.n == expected.n == len(targets)
        assert result.losses.dtype == torch.float64
        assert torch.allclose(result.losses, expected.losses, rtol=1e-5, atol=1e-5)
        assert torch.equal(result.errors, expected.errors)


def test_no_members_have_no_results() -> None:
    assert evaluate_cohort(build("lenet5"), []) == []


def test_buckets_hold_every_member_once_and_waste_less_than_half() -> None:
    sizes = [5, 100, 49, 50, 51, 1, 2, 3, 100]
    buckets = list(_buckets(sizes))
    assert sorted(k for bucket in buckets for k in bucket) == list(range(len(sizes)))
    for bucket in buckets:
        held = [sizes[k] for k in bucket]
        assert held == sorted(held, reverse=True)
        assert held[0] <= 2 * held[-1]


def test_the_result_of_one_model_can_be_changed_like_any_tensor() -> None:
    model, inputs = build("lenet5"), batch(ZOO["lenet5"].shape, 3)
    result = evaluate(model, inputs, torch.tensor([0, 1, 2]), criterion=cross_entropies)
    before = result.losses.clone()
    result.losses.add_(1.0)
    assert torch.equal(result.losses, before + 1.0)


class Given(torch.nn.Module):
    """Takes its inputs for logits."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.zero


@pytest.mark.parametrize(
    ("logits", "known"),
    [
        ([0.0, 2.0, 1.0], True),
        ([0.0, 2.0, -math.inf], True),  # a class that a model rules out
        ([0.0, math.nan, 1.0], False),
        ([math.nan] * 3, False),
        ([0.0, 2.0, math.inf], False),
        ([-math.inf] * 3, False),
    ],
)
def test_one_example_whose_logits_are_not_finite_has_neither_loss_nor_accuracy(
    logits: list[float], known: bool
) -> None:
    model, plain = Given(), torch.tensor([[0.0, 2.0, 1.0]] * 3)
    spoilt, targets = torch.cat([plain[:2], torch.tensor([logits])]), torch.tensor([1, 0, 1])
    alone = [evaluate(model, inputs, targets) for inputs in (plain, spoilt, plain)]
    members = [(state_of(model), inputs, targets) for inputs in (plain, spoilt, plain)]
    for first, second, third in (alone, evaluate_cohort(model, members)):
        assert first.accuracy == third.accuracy == pytest.approx(2 / 3)
        assert math.isfinite(second.loss) == math.isfinite(second.accuracy) == known
        assert second.errors[:2].tolist() == [0.0, 1.0]
