import math

import numpy as np
import pytest

from fedsim.analysis import Data, barriers, criticality, interaction
from fedsim.analysis.samples.sampling import Sampling
from tests.analysis.cases import models, plain_losses

CLASSES = np.repeat([0, 1, 2, 3], [100, 80, 60, 60])
VALUES = np.random.default_rng(0).exponential(size=(3, 300)) * (1 + CLASSES) + np.array([[0.0], [5.0], [9.0]]) * CLASSES


def of_each_class(values: np.ndarray) -> list[np.ndarray]:
    return [values[:, k == CLASSES] for k in range(4)]


def test_a_free_sample_has_the_standard_error_of_the_mean() -> None:
    spread = Sampling.freely(300).spread(VALUES)
    assert np.allclose(spread.error, VALUES.std(1, ddof=1) / np.sqrt(300), rtol=1e-12)
    assert np.allclose(spread.freedom, 299)


def test_shares_that_are_known_leave_the_variance_within_the_classes() -> None:
    expected = sum(np.var(part, axis=1, ddof=1) * part.shape[1] for part in of_each_class(VALUES)) / 300**2
    error = Sampling.stratified(CLASSES, math.inf).spread(VALUES).error
    assert np.allclose(error, np.sqrt(expected), rtol=1e-12)
    assert (error[1:] < 0.5 * Sampling.freely(300).spread(VALUES).error[1:]).all()


def test_a_stratified_sample_goes_over_into_a_free_one_of_the_whole_data_set() -> None:
    free, known = (
        np.square(each.spread(VALUES).error) for each in (Sampling.freely(300), Sampling.stratified(CLASSES, math.inf))
    )
    for drawn_from, share in ((300, 1.0), (1200, 0.25), (3e9, 1e-7)):
        found = np.square(Sampling.stratified(CLASSES, drawn_from).spread(VALUES).error)
        assert np.allclose(found, share * free + (1 - share) * known, rtol=1e-12)


@pytest.mark.parametrize("drawn_from", [None, math.inf, 900])
def test_draws_vary_as_the_standard_error_says(drawn_from: float | None) -> None:
    sampling = Sampling.freely(300) if drawn_from is None else Sampling.stratified(CLASSES, drawn_from)
    drawn = sampling.resample(4000, np.random.default_rng(1))
    assert np.allclose(drawn.of_values.mean(1), 1, atol=1e-5)
    spread = sampling.spread(VALUES)
    assert np.std(VALUES @ drawn.of_values.T / 300, axis=1) == pytest.approx(spread.error, rel=0.04)
    squares = np.square(spread.deviations) * sampling.factors @ drawn.of_squares.T
    assert squares.mean(1) == pytest.approx(spread.within, rel=0.04)


def test_a_class_with_a_single_example_is_joined_with_another() -> None:
    several = Sampling.stratified([0, 1, 1, 2, 3], math.inf).strata
    assert (several[[0, 3, 4]] == several[0]).all()
    assert (several[[1, 2]] != several[0]).all()
    one = Sampling.stratified([7, 7, 7, 7, 5, 5, 9], math.inf).strata
    assert one.tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert Sampling.stratified([1, 2, 3], math.inf).text == "free"
    assert np.isnan(Sampling.stratified([1], math.inf).spread(np.ones((2, 1))).error).all()


def test_every_table_has_the_standard_errors_of_its_sampling_and_says_which() -> None:
    model, states, inputs, targets = models(3)
    data = Data(inputs, targets, stratified_from=400)
    for measure, column in ((barriers, "loss_own_base"), (interaction, "loss_interaction")):
        table = measure(model, states, inputs, targets, stratified_from=400)
        free = measure(model, states, inputs, targets)
        assert set(table["sampling"]) == {"stratified: 40 of 400"}
        assert set(free["sampling"]) == {"free"}
        assert (table[column] == free[column]).all()
        assert (table[f"{column}_se"] != free[f"{column}_se"]).all()
    table = criticality(model, states[1:], states[0], inputs, targets, groups=["full"], stratified_from=400)
    own, reset = (plain_losses(model, state, inputs, targets)[0].numpy() for state in (states[1], states[0]))
    assert table["loss_own_base_se"][0] == pytest.approx(data.sampling.spread((reset - own)[None]).error[0], rel=1e-9)


def test_bands_are_multiples_of_the_standard_errors_of_their_table() -> None:
    model, states, inputs, targets = models(3)
    for options in ({}, {"stratified_from": 400}):
        table = barriers(model, states, inputs, targets, bands=0.95, **options)
        width = (table["loss_own_base_high"] - table["loss_own_base_low"]) / table["loss_own_base_se"]
        assert np.allclose(width, width[0], rtol=1e-9)
        assert 2 * 1.96 < width[0] < 2 * 4


@pytest.mark.parametrize("size", [39, 0, -1, math.nan])
def test_examples_come_from_at_least_as_many(size: float) -> None:
    _, _, inputs, targets = models(1)
    with pytest.raises(ValueError, match=f"stratified_from = {size} must be at least the 40 examples"):
        Data(inputs, targets, stratified_from=size)


def test_targets_without_classes_are_not_stratified() -> None:
    _, _, inputs, _ = models(1)
    with pytest.raises(ValueError, match="needs classes; targets of "):
        Data(inputs, inputs, stratified_from=100)
