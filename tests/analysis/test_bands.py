import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.analysis.mixing.mixes import Mix
from fedsim.analysis.samples.bands import peaks, with_bands
from fedsim.analysis.samples.per_example import Comparisons, Measurement, tabulate
from fedsim.analysis.samples.sampling import Sampling
from fedsim.data.dataset import stratified

TS = (0.0, 0.25, 0.5, 1.0)
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
CLASSES = np.repeat(np.arange(4), [120, 90, 60, 30])
BY_CLASS = Sampling.stratified(CLASSES, math.inf)
GROUPS = 4


def measurement(
    losses: NDArray[np.float64],
    sampling: Sampling = BY_CLASS,
    ts: tuple[float, ...] = TS,
    references: Sequence[str] = ("own_base", "chord"),
) -> Measurement:
    """Two models, whose losses come first, and all mixes of each group in turn; ends of a path are the first model."""
    inner = [t for t in ts if 0 < t < 1]
    groups = (len(losses) - 2) // len(inner)
    mixes = [Mix(f"g{g}", frozenset(), 0, 1, t) for g in range(groups) for t in ts]
    mixed = np.array([2 + g * len(inner) + inner.index(t) if t in inner else 0 for g in range(groups) for t in ts])
    comparisons = Comparisons(mixes, mixed, np.zeros(len(mixes), dtype=np.int64), np.array([0.5, 0.5]))
    values = {"loss": losses, "error": (losses > 1).astype(float)}
    table = tabulate(comparisons, values, np.full(len(losses), losses.shape[1]), sampling, references)
    return Measurement(table, comparisons, values, sampling)


def draw(
    stream: np.random.Generator, heights: NDArray[np.float64], classes: NDArray[np.int64] = CLASSES
) -> NDArray[np.float64]:
    """Draw losses with a common part for each example, and rare large ones in what is mixed.

    Parameters
    ----------
    heights
        True barriers against the base, shape [mixes, 4].
    """
    common = stream.gamma(2.0, 0.5 * (1 + classes))
    noise = (np.exp(stream.normal(size=(len(heights), len(classes)))) - np.exp(0.5)) * (0.3 + 0.1 * classes)
    return np.vstack([common, 1.5 * common, common + heights[:, classes] + noise])


def drawn(
    stream: np.random.Generator, heights: NDArray[np.float64], n: int, drawn_from: float | None
) -> tuple[NDArray[np.float64], Sampling]:
    """Draw n examples: freely, in the population's shares, or stratified from a data set that was drawn freely."""
    if drawn_from is None:
        return draw(stream, heights, stream.choice(4, size=n, p=SHARES)), Sampling.freely(n)
    if drawn_from == math.inf:
        classes = np.repeat(np.arange(4), np.round(SHARES * n).astype(int))
        return draw(stream, heights, classes), Sampling.stratified(classes, math.inf)
    classes = stream.choice(4, size=int(drawn_from), p=SHARES)
    chosen = stratified(classes, n, stream)
    return draw(stream, heights, classes)[:, chosen], Sampling.stratified(classes[chosen], drawn_from)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "drawn_from"), [(30, None), (100, None), (30, math.inf), (100, 1000), (100, 200)])
def test_errors_and_bands_hold_as_often_as_they_say_however_the_sample_was_drawn(
    n: int, drawn_from: float | None
) -> None:
    stream = np.random.default_rng(0)
    # What layers cost differs more between the classes than within them, as for clients with few classes.
    heights = 3 * stream.normal(size=(2 * GROUPS, 4))
    truth = np.zeros((GROUPS, len(TS)))
    truth[:, 1:3] = (heights @ SHARES).reshape(GROUPS, 2)
    inside, misses, errors = [], [], []
    for repeat in range(150):
        measured = measurement(*drawn(stream, heights, n, drawn_from), references=["own_base"])
        table = with_bands(measured, 0.95, draws=150, seed=repeat)
        low, high = table["loss_own_base_low"].to_numpy(), table["loss_own_base_high"].to_numpy()
        inside.append(np.all((low <= truth.ravel()) & (truth.ravel() <= high)))
        uncertain = (table["loss_own_base_se"] > 0).to_numpy()
        misses.append((table["loss_own_base"].to_numpy() - truth.ravel())[uncertain])
        errors.append(table["loss_own_base_se"].to_numpy()[uncertain])
    assert 0.92 <= np.mean(inside) <= 0.98, np.mean(inside)
    deviations, expected = (np.sqrt(np.square(each).mean(0)) for each in (misses, errors))
    assert np.mean(expected / deviations) == pytest.approx(1.0, abs=0.06)
    # 1.96 standard errors are for one row, and for enough examples of each class.
    alone = np.abs(misses) <= 1.96 * np.array(errors)
    assert (0.92 if n > 30 else 0.85) <= np.mean(alone) <= 0.98, np.mean(alone)
    assert np.mean(alone.all(1)) < 0.8


def test_rows_that_do_not_vary_have_bands_of_no_width() -> None:
    table = with_bands(measurement(draw(np.random.default_rng(0), np.ones((4, 4)))), 0.95)
    ends = table.query("t == 0")
    assert (ends[["loss_own_base_low", "loss_own_base_high"]] == 0).all(axis=None)
    inner = table.query("0 < t < 1")
    assert (inner["loss_own_base_low"] < inner["loss_own_base"]).all()
    assert (inner["loss_own_base"] < inner["loss_own_base_high"]).all()


def test_a_single_example_has_no_bands() -> None:
    one = measurement(np.array([[1.0], [2.0], [3.0]]), Sampling.freely(1), ts=(0.0, 0.5))
    assert with_bands(one, 0.95)[["loss_own_base_low", "error_chord_high"]].isna().all(axis=None)
    assert peaks(one)[["loss_chord_max_low", "loss_chord_max_high"]].isna().all(axis=None)
    assert peaks(one)["loss_chord_max"].tolist() == [1.5]


def test_a_peak_is_the_largest_value_of_its_path() -> None:
    measured = measurement(draw(np.random.default_rng(0), np.outer([0.0, 3.0, 2.0, 1.0], np.ones(4))))
    table, top = with_bands(measured, 0.95), peaks(measured, "own_base")
    assert top["group"].tolist() == ["g0", "g1"]
    assert top["loss_own_base_max_t"].tolist() == [0.5, 0.25]
    for name, path in table.groupby("group"):
        row = top[top["group"] == name].iloc[0]
        assert row["loss_own_base_max"] == path["loss_own_base"].max()
        assert row["loss_own_base_max_low"] == path["loss_own_base_low"].max()
        assert row["loss_own_base_max_high"] == path["loss_own_base_high"].max()


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_probability(level: float) -> None:
    measured = measurement(draw(np.random.default_rng(0), np.ones((2, 4))))
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        with_bands(measured, level)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        peaks(measured, level=level)


def test_a_reference_that_was_not_measured_has_no_peaks() -> None:
    measured = measurement(draw(np.random.default_rng(0), np.ones((2, 4))))
    with pytest.raises(ValueError, match="reference = 'swap_ends'"):
        peaks(measured, "swap_ends")
