"""Class Gaussians and the calibration of a head against closed forms and numpy."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.alignment import ClassGaussians, calibrate_head

CLASSES, DIMENSIONS = 4, 3


def made_up(n: int, classes: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.default_rng(seed)
    labels = torch.from_numpy(stream.choice(classes, n))
    mixing = torch.from_numpy(stream.normal(size=(DIMENSIONS, DIMENSIONS)))
    return torch.from_numpy(stream.normal(size=(n, DIMENSIONS))) @ mixing + 5 * labels[:, None], labels


def test_pooled_gaussians_are_those_of_the_joined_examples() -> None:
    # Class 2 is with one client only, class 3 with nobody; the last client has a single example.
    members = [made_up(40, [0, 1], 0), made_up(25, [0, 1, 2], 1), made_up(1, [1], 2)]
    found = ClassGaussians.pooled([ClassGaussians.of(*member, CLASSES) for member in members])
    features, labels = (torch.cat(parts).numpy() for parts in zip(*members, strict=True))
    assert found.counts.tolist() == np.bincount(labels, minlength=CLASSES).tolist()
    for c in range(3):
        rows = features[labels == c]
        np.testing.assert_allclose(found.means[c], rows.mean(0), rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.covariances[c], np.cov(rows.T), rtol=0, atol=1e-10)
    assert not found.means[3].any()
    assert not found.covariances[3].any()


def test_pooling_in_steps_is_pooling_at_once() -> None:
    parts = [ClassGaussians.of(*made_up(20, [0, 1, 2], seed), CLASSES) for seed in range(3)]
    once = ClassGaussians.pooled(parts)
    steps = ClassGaussians.pooled([ClassGaussians.pooled(parts[:2]), parts[2]])
    for name, value in vars(once).items():
        torch.testing.assert_close(vars(steps)[name], value, rtol=0, atol=1e-10)


def test_drawn_features_have_the_moments_and_only_classes_with_two_examples() -> None:
    member = made_up(30, [0, 2], 0)
    one = member[0][:1], torch.tensor([1])
    gaussians = ClassGaussians.pooled([ClassGaussians.of(*each, CLASSES) for each in (member, one)])
    features, labels = gaussians.draw(100_000, np.random.default_rng(0))
    assert labels.unique().tolist() == [0, 2]
    for c in (0, 2):
        rows, scale = features[labels == c], float(gaussians.covariances[c].diagonal().max())
        torch.testing.assert_close(rows.mean(0), gaussians.means[c], rtol=0, atol=0.02 * scale**0.5)
        torch.testing.assert_close(rows.T.cov(), gaussians.covariances[c], rtol=0, atol=0.02 * scale)
    single = ClassGaussians.of(*one, CLASSES)
    assert len(single.draw(5, np.random.default_rng(0))[1]) == 0


def test_a_head_follows_plain_descent_on_the_features() -> None:
    features, labels = made_up(10, [0, 1, 2, 3], 0)
    head = nn.Linear(DIMENSIONS, CLASSES).double()
    before = [value.detach().clone() for value in head.parameters()]
    found = calibrate_head(*before, features, labels, epochs=2, lr=0.1, batch_size=4, rng=np.random.default_rng(3))
    stream = np.random.default_rng(3)
    for _ in range(2):
        for chosen in torch.from_numpy(stream.permutation(10)).split(4):
            head.zero_grad()
            cross_entropy(head(features[chosen]), labels[chosen]).backward()
            with torch.no_grad():
                for value in head.parameters():
                    value -= 0.1 * value.grad
    for value, expected in zip(found, head.parameters(), strict=True):
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    weight, bias = calibrate_head(before[0], None, features[:0], labels[:0], epochs=2, lr=0.1, batch_size=4, rng=stream)
    assert torch.equal(weight, before[0])
    assert bias is None
