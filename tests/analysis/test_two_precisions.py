"""Losses in bfloat16, corrected by float32 on a few examples, estimate those in float32 with the errors they state."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fedsim.analysis.samples.tolerance as sampled
from fedsim.analysis.barriers import barriers
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.samples.sampling import Sampling
from fedsim.analysis.samples.tolerance import estimate, stratified_order
from fedsim.analysis.samples.two_precisions import FEWEST, TwoPrecisions
from fedsim.data.dataset import stratified
from fedsim.training.evaluation import Evaluation
from tests.analysis.test_tolerance import OPTIONS, TOLERANCE, clients

N = 600


class Known:
    """Models whose losses are known in both precisions, as `MixedModels` would evaluate them."""

    def __init__(self, exact: dict[object, torch.Tensor]) -> None:
        self.exact = exact

    def evaluate(self, recipes: list, data: Data) -> dict:
        return {
            each: Evaluation(self.exact[each][data.targets], (self.exact[each][data.targets] > 1).double())
            for each in recipes
        }


def double_sample(
    exact: np.ndarray,
    coarse: np.ndarray,
    stream: np.random.Generator,
    deviation: float,
    strata: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Return the values of a model that was seen in bfloat16 on all examples, and its number in float32."""
    n, losses = len(exact), torch.from_numpy(coarse)
    order = stratified_order(np.zeros(n, dtype=np.int64) if strata is None else strata, stream)
    # The targets of these data are the numbers of the examples.
    data = Data(torch.zeros(n, 1), torch.arange(n))
    found = TwoPrecisions(Known({"a": torch.from_numpy(exact)}), data, order, deviation, stream)
    values = found.complete({"a": Evaluation(losses, (losses > 1).double())})
    return values["a"].losses.numpy(), found.used("a")


def test_a_double_sample_is_unbiased_and_varies_as_the_closed_form_says() -> None:
    stream = np.random.default_rng(0)
    exact = stream.gamma(2.0, 1.0, size=N)
    coarse = exact + 0.3 + 0.1 * stream.normal(size=N)  # biased by 0.3
    missed = []
    for _ in range(400):
        values, used = double_sample(exact, coarse, stream, deviation=1.0)
        assert used == FEWEST
        missed.append(values.mean() - exact.mean())
    closed = (exact - coarse).var(ddof=1) * (1 / FEWEST - 1 / N)
    assert abs(np.mean(missed)) < 3 * math.sqrt(closed / 400)
    assert np.var(missed) == pytest.approx(closed, rel=0.2)


@pytest.mark.parametrize("skewed", [False, True])
def test_a_number_of_examples_that_adapts_biases_by_less_than_the_deviation(skewed: bool) -> None:
    stream, deviation = np.random.default_rng(5), 0.2
    exact = stream.gamma(2.0, 1.0, size=N)
    differences = stream.exponential(size=N) - 1 if skewed else stream.normal(size=N)
    missed, numbers = [], set()
    for _ in range(400):
        values, used = double_sample(exact, exact - differences, stream, deviation)
        missed.append(values.mean() - exact.mean())
        numbers.add(used)
    assert len(numbers) > 2
    assert abs(np.mean(missed)) < (deviation if skewed else 3 * np.std(missed) / math.sqrt(400))


def test_rounding_of_few_large_losses_is_expected_before_one_of_them_is_seen() -> None:
    stream, deviation, n = np.random.default_rng(6), 0.0005, 2000
    exact = stream.gamma(2.0, 0.01, size=n)
    exact[:40] += 20.0
    coarse = exact * (1 - 2**-9 * np.abs(stream.normal(size=n)))
    missed, numbers = [], []
    for _ in range(300):
        values, used = double_sample(exact, coarse, stream, deviation)
        missed.append(values.mean() - exact.mean())
        numbers.append(used)
    assert min(numbers) > FEWEST
    assert abs(np.mean(missed)) < deviation / 4


def test_models_see_as_many_examples_in_float32_as_the_closed_form_asks_for() -> None:
    stream = np.random.default_rng(1)
    exact = stream.gamma(2.0, 1.0, size=4000)
    coarse = exact + stream.normal(size=4000)
    for deviation, most in ((0.5, 16), (0.12, 128), (0.03, 4000)):
        values, used = double_sample(exact, coarse, stream, deviation)
        needed = 1 / (deviation**2 + 1 / 4000)
        assert needed * 0.7 < used <= most
    assert np.array_equal(values, exact)


@pytest.mark.parametrize("noise", [0.05, 2.0])
@pytest.mark.parametrize("drawn_from", [None, math.inf, 1000])
def test_intervals_cover_the_mean_of_the_population_as_often_as_they_say(
    noise: float, drawn_from: float | None
) -> None:
    stream, shares, inside = np.random.default_rng(2), np.array([0.5, 0.3, 0.2]), []
    truth = float(shares @ (2.0 * np.arange(1, 4)))
    for _ in range(500):
        if drawn_from is None:
            classes = stream.choice(3, size=N, p=shares)
            sampling = Sampling.freely(N)
        elif drawn_from == math.inf:
            classes = np.repeat(np.arange(3), (shares * N).astype(int))
            sampling = Sampling.stratified(classes, math.inf)
        else:
            every = stream.choice(3, size=1000, p=shares)
            classes = every[stratified(every, N, stream)]
            sampling = Sampling.stratified(classes, 1000)
        exact = stream.gamma(2.0, 1.0, size=N) * (1 + classes)
        coarse = exact + noise * (0.5 + stream.normal(size=N))
        values, used = double_sample(exact, coarse, stream, 1.0, classes)
        assert used < N / 4
        spread = sampling.spread(values[None])
        inside.append(abs(spread.mean[0] - truth) <= 1.96 * spread.error[0])
    assert 0.92 <= np.mean(inside) <= 0.98, np.mean(inside)


@pytest.fixture
def with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without instructions for bfloat16 gives the same numbers, only later."""
    monkeypatch.setattr(sampled, "gains_from_bfloat16", lambda device: True)


@pytest.mark.slow
@pytest.mark.usefixtures("with_instructions")
def test_rows_in_two_precisions_are_within_the_tolerance_and_without_bias() -> None:
    model, states, inputs, targets = clients()
    inputs, targets = inputs[:2000], targets[:2000]
    exact = barriers(model, states, inputs, targets, **OPTIONS)
    missed, errors, few = [], [], []
    for seed in range(6):
        table = barriers(
            model, states, inputs, targets, **OPTIONS, tolerance=TOLERANCE, seed=seed, precision="bfloat16"
        )
        assert (table["n_float32"] <= table["n"]).all()
        few += (table["n_float32"] / table["n"]).tolist()
        missed.append((table["loss"] - exact["loss"]).to_numpy())
        errors.append(np.abs(table["error"] - exact["error"]) <= 2 * table["error_own_base_se"] + 1e-3)
        # What two precisions add to the standard errors is at most what the tolerance allows.
        added = table["loss_own_base_se"] ** 2 - exact["loss_own_base_se"] ** 2
        assert added.max() < 2 * (TOLERANCE / 2.2) ** 2
    assert np.mean(np.abs(missed) <= TOLERANCE) >= 0.95
    assert np.abs(missed).max() <= 2 * TOLERANCE
    assert abs(np.mean(missed)) < 3 * np.std(np.mean(missed, axis=1), ddof=1) / math.sqrt(len(missed)) + 1e-4
    assert np.mean(errors) > 0.9
    assert np.mean(few) < 0.2


@pytest.mark.usefixtures("with_instructions")
def test_a_tolerance_that_all_examples_are_needed_for_gives_the_numbers_of_float32() -> None:
    model, states, inputs, targets = clients()
    inputs, targets = inputs[:300], targets[:300]
    plain = barriers(model, states, inputs, targets, **OPTIONS)
    table = barriers(model, states, inputs, targets, **OPTIONS, tolerance=1e-9, precision="bfloat16")
    assert (table["n_float32"] == 300).all()
    pd.testing.assert_frame_equal(table.drop(columns="n_float32"), plain, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("with_instructions")
def test_models_whose_losses_are_not_finite_are_evaluated_in_float32() -> None:
    model, states, inputs, targets = clients()
    inputs, targets = inputs[:400], targets[:400]
    broken = [states[0], {key: value * torch.inf for key, value in states[1].items()}, states[2]]
    options = OPTIONS | {"references": ["own_base"], "tolerance": TOLERANCE, "precision": "bfloat16"}
    table = barriers(model, broken, inputs, targets, **options)
    healthy = (table[["base", "other"]] != 1).all(axis=1)
    assert (table["n_float32"][~np.isfinite(table["loss"])] == 400).all()
    assert not np.isfinite(table["loss"]).all()
    assert (table["n_float32"][healthy] < 400).all()
    assert table["loss"][healthy].notna().all()


class LogProbabilities(nn.Module):
    """Gives the logarithms of two probabilities, the smaller of which may round to 0 in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shares = self.fc(inputs).sigmoid()
        return torch.cat([(1 - shares).log(), shares.log()], 1)


@pytest.mark.usefixtures("with_instructions")
def test_losses_that_are_not_finite_in_bfloat16_alone_are_those_of_float32() -> None:
    inputs = torch.linspace(-2, 2, 800)[:, None].clone()
    inputs[::67] = 9.0
    targets = (inputs[:, 0] > 0).long()
    targets[67::134] = 0  # of an example with a loss of about 9
    states = [{"fc.weight": torch.tensor([[w]]), "fc.bias": torch.zeros(1)} for w in (1.0, 0.8)]
    options = {"groups": ["full"], "against": [(0, 1), (1, 0)], "ts": [0.5, 1.0], "references": ["own_base"]}
    exact = barriers(LogProbabilities(), states, inputs, targets, **options)
    table = barriers(LogProbabilities(), states, inputs, targets, **options, tolerance=TOLERANCE, precision="bfloat16")
    data = Data(inputs, targets)
    coarse = MixedModels(LogProbabilities(), states).in_precision("bfloat16")
    recipe = coarse.own(0)
    assert not coarse.evaluate([recipe], data)[recipe].losses.isfinite().all()
    for column in ("loss", "loss_own_base"):
        np.testing.assert_allclose(table[column], exact[column], rtol=0, atol=TOLERANCE)


def test_models_in_bfloat16_give_what_autocast_gives() -> None:
    model, states, inputs, targets = clients()
    data = Data(inputs[:100], targets[:100])
    models = MixedModels(model, states)
    recipe = (0, (0, 1, 0.25), 2)
    exact, coarse = (each.evaluate([recipe], data)[recipe] for each in (models, models.in_precision("bfloat16")))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        whole = models.build(recipe)(data.inputs).float()
    expected = torch.nn.functional.cross_entropy(whole, data.targets, reduction="none").double()
    away = (coarse.losses - exact.losses).abs().max()
    assert 1e-4 < away < 0.1
    assert torch.allclose(coarse.losses, expected, rtol=0, atol=float(2 * away))
    # In float32 all stays as it was.
    assert torch.equal(models.evaluate([recipe], data)[recipe].losses, exact.losses)


@pytest.mark.parametrize("reason", ["no instructions", "a model that does not run"])
def test_where_bfloat16_is_of_no_use_all_is_float32_and_the_log_says_so(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, states, inputs, targets = clients()
    inputs, targets, options = inputs[:300], targets[:300], OPTIONS | {"tolerance": TOLERANCE}
    monkeypatch.setattr(sampled, "gains_from_bfloat16", lambda device: reason != "no instructions")

    def failing(self, precision):
        raise RuntimeError("mat1 and mat2 must have the same dtype")

    if reason != "no instructions":
        monkeypatch.setattr(MixedModels, "in_precision", failing)
    table = barriers(model, states, inputs, targets, **options, precision="bfloat16")
    assert len(caplog.records) == 1
    assert ("gains nothing" if reason == "no instructions" else "must have the same dtype") in caplog.text
    assert (table["n_float32"] == table["n"]).all()
    pd.testing.assert_frame_equal(
        table.drop(columns="n_float32"), barriers(model, states, inputs, targets, **options), rtol=0, atol=1e-6
    )


def test_a_second_precision_needs_a_tolerance() -> None:
    model, states, inputs, targets = clients()
    with pytest.raises(ValueError, match=r"precision = 'bfloat16' needs a tolerance; add tolerance=0\.01"):
        barriers(model, states, inputs, targets, precision="bfloat16")
    with pytest.raises(ValueError, match="precision = 'half' must be one of float32, bfloat16"):
        barriers(model, states, inputs, targets, precision="half", tolerance=0.1)
    few = Data(inputs[:100], targets[:100], tolerance=0.1, precision="bfloat16")
    used = estimate(models := MixedModels(model, states), [models.own(0)], few, tolerance=0.1)
    assert used.in_float32 == {models.own(0): 100}
