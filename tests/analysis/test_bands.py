import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.analysis.mixing.mixes import Mix
from fedsim.analysis.samples.bands import peaks, resampled_means, resampling_weights, simultaneous, with_bands
from fedsim.analysis.samples.per_example import Comparisons, Measurement, tabulate
from fedsim.seeds import rng

TS = (0.0, 0.25, 0.5, 1.0)
STRATA = np.repeat([0, 1, 2, 3], [100, 80, 60, 60])
GROUPS = 6


def measurement(losses: NDArray[np.float64], strata: NDArray[np.int64], ts: tuple[float, ...] = TS) -> Measurement:
    """Two models, whose losses come first, and all mixes of each group in turn; ends of a path are the first model."""
    inner = [t for t in ts if 0 < t < 1]
    groups = (len(losses) - 2) // len(inner)
    mixes = [Mix(f"g{g}", frozenset(), 0, 1, t) for g in range(groups) for t in ts]
    mixed = np.array([2 + g * len(inner) + inner.index(t) if t in inner else 0 for g in range(groups) for t in ts])
    comparisons = Comparisons(mixes, mixed, np.zeros(len(mixes), dtype=np.int64), np.array([0.5, 0.5]))
    values = {"loss": losses, "error": (losses > 1).astype(float)}
    table = tabulate(comparisons, values, np.full(len(losses), losses.shape[1]), ["own_base", "chord"])
    return Measurement(table, comparisons, values, strata)


def draw(stream: np.random.Generator, heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw skewed losses with a common part for each example; ``heights`` are the true barriers against the base."""
    common = stream.gamma(2.0, 0.5 * (1 + STRATA))
    noise = stream.gamma(2.0, 0.5, size=(len(heights), len(STRATA))) * (0.3 + 0.1 * STRATA)
    mixed = common + heights[:, None] + noise - (0.3 + 0.1 * STRATA)
    return np.vstack([common, 1.5 * common, mixed])


@pytest.mark.slow
def test_bands_hold_for_all_rows_at_once_as_often_as_they_say() -> None:
    stream = np.random.default_rng(0)
    heights = stream.normal(size=2 * GROUPS)
    truth = np.zeros((GROUPS, len(TS)))
    truth[:, 1:3] = heights.reshape(GROUPS, 2)
    inside, alone, tops = [], [], []
    for repeat in range(300):
        measured = measurement(draw(stream, heights), STRATA)
        table = with_bands(measured, 0.95, draws=200, seed=repeat)
        low, high = table["loss_own_base_low"].to_numpy(), table["loss_own_base_high"].to_numpy()
        inside.append(np.all((low <= truth.ravel()) & (truth.ravel() <= high)))
        missed = abs(table["loss_own_base"] - truth.ravel()) > 1.96 * table["loss_own_base_se"]
        alone.append(not missed.any())
        top = peaks(measured, "own_base", draws=200, seed=repeat)
        highest = truth.max(1)
        tops.append(np.all((top["loss_own_base_max_low"] <= highest) & (highest <= top["loss_own_base_max_high"])))
    assert 0.92 <= np.mean(inside) <= 0.98, np.mean(inside)
    assert 0.92 <= np.mean(tops) <= 0.98, np.mean(tops)
    # What the rows' own standard errors say does not hold for all of them.
    assert np.mean(alone) < 0.8, np.mean(alone)


def test_weights_keep_each_stratum_and_give_means_their_stratified_variance() -> None:
    stream = np.random.default_rng(0)
    values = stream.exponential(size=len(STRATA)) * (1 + STRATA)
    weights = resampling_weights(STRATA, 4000, stream)
    for stratum, size in enumerate(np.bincount(STRATA)):
        assert np.allclose(weights[:, stratum == STRATA].sum(1), size)
    expected = sum(np.var(part, ddof=1) * len(part) for part in (values[k == STRATA] for k in range(4))) / 300**2
    assert np.var(weights @ values / 300) == pytest.approx(expected, rel=0.06)


def test_classes_with_one_example_are_one_stratum() -> None:
    weights = resampling_weights(np.array([0, 1, 1, 2, 3]), 200, np.random.default_rng(0))
    assert np.allclose(weights[:, [0, 3, 4]].sum(1), 3)
    assert (weights.std(0) > 0).all()
    assert (resampling_weights(np.array([0, 1, 1]), 50, np.random.default_rng(0))[:, 0] == 1).all()


def test_all_columns_see_the_same_draws() -> None:
    losses = draw(np.random.default_rng(0), np.zeros(4))
    both = resampled_means({"a": losses, "b": losses[:2]}, STRATA, 150, np.random.default_rng(1))
    assert np.allclose(both["a"][:2], both["b"], rtol=1e-12)
    assert both["a"].shape == (6, 150)


def test_the_band_of_one_row_is_its_bootstrap_quantile() -> None:
    resampled = np.random.default_rng(0).normal(size=(1, 999))
    low, high = simultaneous(np.zeros(1), resampled, 0.9)
    assert high[0] == pytest.approx(np.sort(abs(resampled[0]))[899], rel=1e-2)
    assert low[0] == -high[0]


def test_rows_that_do_not_vary_have_bands_of_no_width() -> None:
    table = with_bands(measurement(draw(np.random.default_rng(0), np.ones(4)), STRATA), 0.95)
    ends = table.query("t == 0")
    assert (ends[["loss_own_base_low", "loss_own_base_high"]] == 0).all(axis=None)
    inner = table.query("0 < t < 1")
    assert (inner["loss_own_base_low"] < inner["loss_own_base"]).all()
    assert (inner["loss_own_base"] < inner["loss_own_base_high"]).all()


def test_a_single_example_has_no_bands() -> None:
    one = measurement(np.array([[1.0], [2.0], [3.0]]), np.array([0]), ts=(0.0, 0.5))
    assert with_bands(one, 0.95)[["loss_own_base_low", "error_chord_high"]].isna().all(axis=None)
    assert peaks(one)[["loss_chord_max_low", "loss_chord_max_high"]].isna().all(axis=None)
    assert peaks(one)["loss_chord_max"].tolist() == [1.5]


def test_bands_are_those_of_the_differences_drawn_anew() -> None:
    measured = measurement(draw(np.random.default_rng(0), np.arange(4.0)), STRATA)
    table = with_bands(measured, 0.9, draws=50, seed=3)
    weights = resampling_weights(STRATA, 50, rng(3, "bootstrap"))
    base, mixed = measured.values["loss"][0], measured.values["loss"][[2, 3, 4, 5]]
    means, drawn = (mixed - base).mean(1), (mixed - base) @ weights.T / len(STRATA)
    error = drawn.std(1)
    width = np.quantile(abs((drawn - means[:, None]) / error[:, None]).max(0), 0.9, method="higher") * error
    assert np.allclose(table.query("0 < t < 1")["loss_own_base_high"], means + width)


def test_a_peak_is_the_largest_value_of_its_path() -> None:
    measured = measurement(draw(np.random.default_rng(0), np.array([0.0, 3.0, 2.0, 1.0])), STRATA)
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
    measured = measurement(draw(np.random.default_rng(0), np.ones(2)), STRATA)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        with_bands(measured, level)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        peaks(measured, level=level)


def test_a_reference_that_was_not_measured_has_no_peaks() -> None:
    measured = measurement(draw(np.random.default_rng(0), np.ones(2)), STRATA)
    with pytest.raises(ValueError, match="reference = 'swap_ends'"):
        peaks(measured, "swap_ends")
