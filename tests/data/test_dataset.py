import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedsim.data import DATA, Dataset, Examples, channel_statistics, check_dataset
from fedsim.data import toy as toy_data
from fedsim.data.dataset import set_aside, stratified
from fedsim.data.digits import digits
from fedsim.data.toy import toy
from fedsim.seeds import rng


def test_digits_are_scikit_learns_and_split_the_same_way_always() -> None:
    data = digits()
    assert (len(data.train), len(data.test), data.shape) == (1442, 355, (1, 8, 8))
    assert data.train.inputs.dtype == torch.uint8
    inputs = data.normalise(data.train.inputs)
    assert abs(float(inputs.mean())) < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3
    assert torch.bincount(data.test.targets).min() >= 34


def test_digits_are_what_scikit_learn_reads() -> None:
    raw, data = load_digits(), digits()
    images = torch.from_numpy(raw.images).to(torch.uint8).unsqueeze(1)
    test = [position for label in range(10) for position in np.flatnonzero(raw.target == label)[4::5]]
    train = sorted(set(range(len(images))) - set(test))
    for part, positions in ((data.train, train), (data.test, sorted(test))):
        assert torch.equal(part.inputs, images[positions])
        assert part.targets.tolist() == raw.target[positions].tolist()


def test_a_stratified_sample_keeps_each_class_share_to_within_one() -> None:
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ]
    chosen = torch.from_numpy(stratified(targets.numpy(), 17, np.random.default_rng(0)))
    assert len(set(chosen.tolist())) == 17
    counts = torch.bincount(targets[chosen], minlength=3)
    assert (counts - torch.tensor([8.5, 5.1, 3.4])).abs().max() < 1


def test_a_stratified_sample_of_all_examples_is_all_of_them() -> None:
    labels = np.random.default_rng(0).integers(3, size=50)
    assert stratified(labels, 50, np.random.default_rng(1)).tolist() == list(range(50))


def test_toy_images_are_those_of_one_draw_for_all_examples() -> None:
    """More examples than are drawn at a time, and not a multiple of them."""
    n, shape = 3001, (3, 4, 5)
    data, stream = toy(examples=n, shape=shape, noise=0.3, seed=7), rng(7, "toy")
    patterns = stream.random((4, *shape))
    targets, domain = stream.permutation(np.arange(n) % 4), stream.integers(4, size=n)
    values = 0.8 * patterns[targets] + 0.05 * domain[:, None, None, None] + stream.normal(0, 0.3, size=(n, *shape))
    np.testing.assert_array_equal(data.train.inputs.numpy(), (255 * values.clip(0, 1)).round())
    np.testing.assert_array_equal(data.train.targets.numpy(), targets)
    np.testing.assert_array_equal(data.ids["domain"], domain)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("toy", {"examples": 20_000}),
        ("toy", {"examples": 2000, "shape": (3, 40, 40), "classes": 400}),
        ("toy-text", {"examples": 20_000}),
        ("toy-text", {"examples": 4000, "length": 60}),
    ],
)
def test_data_are_refused_only_where_they_do_not_fit(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(toy_data, "check_fits", lambda needed, what: asked.append(needed))
    DATA[name]()
    tracemalloc.start()
    DATA[name](**options)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.75 * taken < max(asked) < 2 * taken


def test_the_last_target_of_a_sequence_is_its_label() -> None:
    targets = torch.tensor([[1, 2, 3], [4, 5, 0]])
    assert Examples(targets, targets).labels.tolist() == [3, 0]


@pytest.mark.parametrize("positions", [None, np.arange(0, 5000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 4, 5), (6,)])
def test_channel_statistics_agree_with_torchs_own(
    shape: tuple[int, ...], dtype: torch.dtype, positions: np.ndarray | None
) -> None:
    inputs = (torch.rand(5000, *shape, generator=torch.Generator().manual_seed(0)) * 7).to(dtype)
    mean, std = channel_statistics(inputs, 7.0, positions)
    counted = inputs if positions is None else inputs[torch.from_numpy(positions)]
    values = (counted.double() / 7).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(values.mean(1).tolist(), abs=1e-7)
    assert std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-7)


def test_a_constant_channel_is_not_divided_by_its_deviation() -> None:
    inputs = torch.full((10, 2, 3, 3), 0.1)
    inputs[:, 1] = torch.rand(10, 3, 3, generator=torch.Generator().manual_seed(0))
    data = Dataset("x", Examples(inputs, torch.zeros(10).long()), Examples(inputs, torch.zeros(10).long()), ("a",))
    mean, std = channel_statistics(inputs, 1.0)
    normalised = replace(data, mean=mean, std=std).normalise(inputs)
    assert std[0] == 1
    assert normalised[:, 0].abs().max() < 1e-6
    assert normalised[:, 1].std(correction=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("unit", "offset"), [(1e-9, 0.0), (5e-7, 1e-6), (100.0, 1.7e9)])
def test_a_channel_of_small_units_or_of_times_is_no_constant(unit: float, offset: float) -> None:
    values = np.random.default_rng(0).normal(size=(500, 1)) * unit + offset
    mean, std = channel_statistics(torch.from_numpy(values), 1.0)
    assert mean[0] == pytest.approx(values.mean(), rel=1e-9, abs=1e-15)
    assert std[0] == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("name", ["toy", "toy-text", "digits"])
def test_made_up_and_shipped_data_can_be_trained_on_and_are_the_same_each_time(name: str) -> None:
    data, again = DATA[name](), DATA[name]()
    check_dataset(data)
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert torch.equal(data.test.targets, again.test.targets)


def test_tokens_are_not_normalised() -> None:
    data = DATA["toy-text"]()
    assert data.normalise(data.train.inputs) is data.train.inputs


def test_toy_text_continues_itself_by_its_speakers_step() -> None:
    data = DATA["toy-text"](examples=800, classes=5, speakers=4)
    assert torch.equal(data.train.inputs[:, 1:], data.train.targets[:, :-1])
    step = (data.train.targets - data.train.inputs) % 5
    for speaker in range(4):
        common = torch.bincount(step[data.ids["speaker"] == speaker].flatten(), minlength=5)
        assert common.argmax() == 1 + speaker % 4


def examples(n: int = 6, channels: int = 2) -> Examples:
    return Examples(torch.zeros(n, channels, 4, 4, dtype=torch.uint8), torch.arange(n) % 3)


def tokens(token: int) -> Examples:
    return Examples(torch.full((6, 2), token), torch.arange(6) % 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": Examples(examples().inputs, torch.zeros(5).long())}, "6 inputs and 5 targets"),
        ({"test": Examples(examples().inputs[:0], torch.zeros(0).long())}, "test set has 0 inputs"),
        ({"test": examples(channels=1)}, r"inputs of shape \(1, 4, 4\), not \(2, 4, 4\)"),
        ({"train": Examples(examples().inputs, torch.zeros(6))}, "targets of torch.float32"),
        ({"classes": ("a", "b")}, "label 2; labels must be from 0 to 1"),
        ({"test": Examples(examples().inputs, -torch.ones(6).long())}, "test set has the label -1"),
        ({"mean": (0.0,) * 3, "std": (1.0,) * 3}, "3 means"),
        ({"mean": (0.0,) * 2}, "2 means and 0 standard deviations"),
        ({"ids": {"writer": np.zeros(5)}}, "5 ids 'writer' for 6"),
        ({"ids": {"writer": np.array(list("abcdef"))}}, "ids 'writer' of <U1; they must be non-negative integers"),
        ({"ids": {"writer": np.array([0, 1, 2, 3, 4, -1])}}, "they must be non-negative integers"),
        (
            {"test": Examples(examples().inputs, torch.zeros(6, 2).long())},
            r"targets of shape \(2,\) per example",
        ),
        ({"train": tokens(3), "test": tokens(0)}, "tokens from 3 to 3; they must be from 0 to 2"),
        ({"train": Examples(torch.full((6, 2, 4, 4), torch.nan), torch.arange(6) % 3)}, "not finite"),
    ],
)
def test_a_data_set_whose_parts_do_not_fit_is_named(changes: dict, message: str) -> None:
    good = Dataset("mine", examples(), examples(), ("a", "b", "c"))
    check_dataset(good)
    with pytest.raises(ValueError, match=message):
        check_dataset(replace(good, **changes))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.34, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [1, 7, 100, 1003])
def test_every_stretch_loses_its_share_to_the_test_set(share: float, n: int) -> None:
    even, random = (set_aside(n, share, spacing) for spacing in ("even", "random"))
    assert random.sum() == even.sum() == math.floor(n * share + 1e-9)
    assert np.abs(np.cumsum(random) - np.arange(1, n + 1) * share).max() <= 20 * min(share, 1 - share) + 1
    assert (set_aside(n, share) == random).all()


@pytest.mark.parametrize("share", [0.01, 0.15, 0.2, 0.4, 0.8])
def test_every_place_is_as_likely_to_be_in_the_test_set(share: float) -> None:
    found = np.mean([set_aside(100, share, "random", rng(seed)) for seed in range(400)], axis=0)
    assert found == pytest.approx(np.full(100, share), abs=5 * np.sqrt(share * (1 - share) / 400) + 0.02)
