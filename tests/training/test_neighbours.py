"""Neighbours against scikit-learn's, and their mix with a model at both ends."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fedsim.training.neighbours import WEIGHTS, best_weight, mixed_logits, neighbour_shares


def made_up(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.default_rng(seed)
    return torch.from_numpy(stream.normal(size=(n, 4))), torch.from_numpy(stream.integers(0, 3, n))


@pytest.mark.parametrize(("neighbours", "scale"), [(10, 1.0), (1, 1.0), (5, 0.1)])
def test_shares_are_those_of_scikit_learn(neighbours: int, scale: float) -> None:
    (stored, labels), (queries, _) = made_up(40, 0), made_up(1003, 1)
    other = KNeighborsClassifier(neighbours, weights=lambda d: np.exp(-(d**2) / (4 * scale))).fit(stored, labels)
    found = neighbour_shares(queries, stored, labels, 3, neighbours, scale)
    np.testing.assert_allclose(found, other.predict_proba(queries), rtol=1e-10, atol=1e-12)
    assert mixed_logits(torch.zeros(1003, 3), found, 1.0).argmax(1).tolist() == other.predict(queries).tolist()


def test_fewer_examples_than_neighbours_are_all_neighbours() -> None:
    (stored, labels), (queries, _) = made_up(3, 0), made_up(5, 1)
    assert torch.equal(
        neighbour_shares(queries, stored, labels, 3, 10), neighbour_shares(queries, stored, labels, 3, 3)
    )


def test_far_neighbours_have_shares_too() -> None:
    found = neighbour_shares(torch.full((1, 4), 1e4), torch.eye(4), torch.tensor([0, 1, 1, 2]), 3, 4)
    torch.testing.assert_close(found.sum(1), torch.ones(1))


def test_with_weight_zero_it_is_the_model_and_with_one_the_neighbours() -> None:
    logits, shares = torch.randn(6, 3, generator=torch.manual_seed(0)), torch.eye(3).repeat(2, 1)
    assert mixed_logits(logits, shares, 0.0) is logits
    torch.testing.assert_close(mixed_logits(logits, shares, 1.0).softmax(1), shares.double())
    half = mixed_logits(logits, shares, 0.5).softmax(1)
    torch.testing.assert_close(half, (logits.double().softmax(1) + shares.double()) / 2)


@pytest.mark.parametrize(("right", "expected"), [("model", 0.0), ("neighbours", 1.0)])
def test_the_weight_is_the_one_whose_loss_is_least(right: str, expected: float) -> None:
    targets = torch.tensor([0, 1, 2])
    good, bad = torch.eye(3), torch.eye(3).roll(1, 0)
    logits, shares = (20 * good, bad) if right == "model" else (20 * bad, good)
    assert best_weight(logits, shares, targets) == expected
    # Where each is right half of the time, and as sure as the other, it is neither.
    mixed = best_weight(torch.cat([20 * good, 20 * bad]), torch.cat([bad, good]), targets.repeat(2))
    assert mixed == 0.5
    assert WEIGHTS[0] == 0.0
    assert WEIGHTS[-1] == 1.0
