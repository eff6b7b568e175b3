import copy
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim.analysis.barriers import barriers, measure
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.samples.controls import best_design, designs, estimated_values
from fedsim.analysis.samples.tolerance import FIRST_LOOK, estimate, sources_of, strata_of, stratified_order
from fedsim.data.toy import toy
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params
from fedsim.seeds import rng
from partitions.dirichlet import dirichlet

TOLERANCE = 0.02


@cache
def clients() -> tuple[nn.Module, list[Params], Tensor, Tensor]:
    """Three clients that trained on a few classes each, and a test set of all classes."""
    data = toy(examples=8000, classes=6, shape=(1, 12, 12), noise=0.6)
    train, test = ((part.inputs.float() - 128) / 64 for part in (data.train, data.test))
    targets = data.train.targets
    split = dirichlet(targets[:1200].numpy(), 3, rng(3, "clients"), alpha=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS["mlp"]((1, 12, 12), 6, hidden=(64, 64))
        states = []
        for mine in split:
            net = copy.deepcopy(model)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
            for _ in range(4):
                for batch in torch.from_numpy(mine)[torch.randperm(len(mine))].split(20):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(train[batch]), targets[batch]).backward()
                    optimizer.step()
            states.append(copy.deepcopy(net.state_dict()))
    return model, states, test, data.test.targets


OPTIONS = {"groups": ["layers", "full"], "against": "pairs", "ts": [0.25, 1.0]}


def needed(spread: np.ndarray, n: int) -> np.ndarray:
    """Examples until the mean of values of this spread is known as well as the tolerance says."""
    enough = (2.2 * spread / TOLERANCE) ** 2
    return enough / (1 + enough / n)


@pytest.mark.slow
def test_rows_are_within_the_tolerance_and_need_few_examples() -> None:
    model, states, inputs, targets = clients()
    exact = measure(model, states, inputs, targets, **OPTIONS)
    n, errors, used = len(targets), [], []
    for seed in range(5):
        table = barriers(model, states, inputs, targets, **OPTIONS, tolerance=TOLERANCE, seed=seed)
        partial = table["n"] < n
        errors += (table["loss"] - exact.table["loss"])[partial].abs().tolist()
        used += table["n"][partial].tolist()
        # The last layer is nearly free, the others are not.
        assert set(table["group"][partial]) == {"fc1", "fc2", "full"}
        assert (table["n"][table["group"] == "fc3"] == n).all()
    assert np.mean(np.array(errors) <= TOLERANCE) >= 0.95
    assert max(errors) <= 2 * TOLERANCE
    compared, losses = exact.comparisons, exact.values["loss"]
    paired = compared.barriers(losses, "mean_ends")[partial].std(1)
    assert np.mean(used) < 0.6 * needed(paired, n).mean()
    assert np.mean(used) < 0.45 * needed(losses[compared.mixed][partial].std(1), n).mean()


def test_a_model_known_to_within_the_tolerance_also_has_its_error_and_barriers() -> None:
    model, states, inputs, targets = clients()
    exact = barriers(model, states, inputs, targets, groups="layers")
    table = barriers(model, states, inputs, targets, groups="layers", tolerance=TOLERANCE)
    assert (table["n"] < len(targets)).any()
    for name in ("loss_mean_ends", "loss_own_base", "loss_swap_ends"):
        assert (table[name] - exact[name]).abs().max() < 2 * TOLERANCE
        # Knowing fewer examples adds to the standard error, and at most as much as the tolerance allows.
        added = table[f"{name}_se"] ** 2 - exact[f"{name}_se"] ** 2
        assert added.max() < 1.5 * (TOLERANCE / 2.2) ** 2
    assert ((table["error"] - exact["error"]).abs() <= 3 * table["error_own_base_se"]).all()
    assert table["loss_chord"].isna().all()


def test_a_tolerance_that_all_examples_are_needed_for_gives_the_plain_numbers() -> None:
    model, states, inputs, targets = clients()
    inputs, targets = inputs[:300], targets[:300]
    plain = barriers(model, states, inputs, targets, **OPTIONS)
    table = barriers(model, states, inputs, targets, **OPTIONS, tolerance=1e-9)
    assert (table["n"] == 300).all()
    pd.testing.assert_frame_equal(table, plain, rtol=0, atol=1e-5)
    few = slice(0, FIRST_LOOK)
    pd.testing.assert_frame_equal(
        barriers(model, states, inputs[few], targets[few], **OPTIONS, tolerance=1.0),
        barriers(model, states, inputs[few], targets[few], **OPTIONS),
        rtol=0,
        atol=1e-5,
    )


def test_each_example_is_evaluated_at_most_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, inputs, targets = clients()
    counts: dict = {}
    plain = MixedModels.evaluate

    def counting(self, recipes, data):
        recipes = list(recipes)
        for recipe in set(recipes):
            counts[recipe] = counts.get(recipe, 0) + len(data)
        return plain(self, recipes, data)

    monkeypatch.setattr(MixedModels, "evaluate", counting)
    models = MixedModels(model, states)
    recipes = [(0, (0, 1, 0.5), 0), (2, 0, 0), (1, 1, 2), models.own(1)]
    used = estimate(models, recipes, Data(inputs, targets), tolerance=TOLERANCE).used
    assert used == counts
    assert set(recipes) < set(used)
    assert used[models.own(0)] == used[1, 1, 2] == len(targets) > used[0, (0, 1, 0.5), 0]


def test_models_whose_losses_are_not_finite_are_evaluated_on_all_examples() -> None:
    model, states, inputs, targets = clients()
    broken = [states[0], {key: value * torch.inf for key, value in states[1].items()}, states[2]]
    options = OPTIONS | {"references": ["own_base"]}
    table = barriers(model, broken, inputs, targets, **options, tolerance=TOLERANCE)
    healthy = (table[["base", "other"]] != 1).all(axis=1)
    assert (table["n"][~healthy] == len(targets)).all()
    assert (table["n"][healthy] < len(targets)).any()
    assert table["loss"][healthy].notna().all()


def test_criteria_without_classes_have_a_tolerance_too() -> None:
    model, states, inputs, targets = clients()
    wanted = nn.functional.one_hot(targets, 6).float()
    options = OPTIONS | {"criterion": lambda outputs, expected: (outputs.softmax(1) - expected).square().sum(1)}
    table = barriers(model, states, inputs, wanted, **options, tolerance=TOLERANCE)
    exact = barriers(model, states, inputs, wanted, **options)
    assert (table["n"] < len(targets)).any()
    assert ((table["loss"] - exact["loss"]).abs() <= TOLERANCE).mean() >= 0.95
    assert table["error"].isna().all()


def test_mixes_are_made_of_the_states_that_they_name() -> None:
    assert sources_of((0, (1, 3, 0.5), -1)) == {0, 1, 3, -1}


def test_a_tolerance_is_positive() -> None:
    model, states, inputs, targets = clients()
    with pytest.raises(ValueError, match="tolerance = 0 must be positive"):
        barriers(model, states, inputs, targets, tolerance=0)


def test_targets_that_are_no_classes_are_one_stratum() -> None:
    assert strata_of(torch.tensor([7, 3, 7])).tolist() == [1, 0, 1]
    assert strata_of(torch.rand(3)).tolist() == strata_of(torch.ones(3, 4, dtype=torch.long)).tolist() == [0, 0, 0]


def test_each_beginning_of_the_order_has_the_shares_of_the_classes() -> None:
    strata = np.repeat([0, 1, 2], [600, 300, 100])
    order = stratified_order(strata, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    for m in (10, 50, 333):
        assert np.allclose(np.bincount(strata[order[:m]], minlength=3), m * np.array([0.6, 0.3, 0.1]), atol=2)
    assert not np.array_equal(order, stratified_order(strata, np.random.default_rng(1)))


def population(stream: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw controls, classes and an outcome that depends on them class by class, with true mean 3.9."""
    strata = stream.integers(3, size=n)
    controls = stream.gamma(2.0, 1.0, size=(n, 2)) * (1 + strata[:, None])
    outcome = 0.5 * strata + controls @ [0.5, 0.2] * (1 + 0.5 * (strata == 2)) + stream.normal(size=n) * 0.5
    return controls, strata, outcome[:, None]


def test_estimates_vary_as_their_values_say() -> None:
    stream = np.random.default_rng(0)
    missed, errors, means, variances = [], [], [], []
    for _ in range(400):
        controls, strata, outcome = population(stream, 600)
        sample = stratified_order(strata, stream)[:150]
        candidates = list(designs(controls, np.empty((600, 0)), strata, sample))
        chosen, error = best_design(candidates, sample, outcome[sample])
        values = estimated_values(candidates[chosen[0]], sample, outcome[sample], error)
        missed.append(float(values.mean() - outcome.mean()))
        errors.append(error[0])
        means.append(values.mean())
        variances.append(values.var(ddof=1) / 600)
    # About 400 draws, the ratio of standard deviations is known to 3.5 %.
    assert np.std(missed) == pytest.approx(np.mean(errors), rel=0.1)
    assert abs(np.mean(missed)) < 3 * np.std(missed) / 20
    assert np.std(means) == pytest.approx(np.sqrt(np.mean(variances)), rel=0.1)


def test_outcomes_that_the_controls_explain_are_known_exactly() -> None:
    controls, strata, _ = population(np.random.default_rng(0), 500)
    outcome = (strata + controls @ [2.0, -1.0] * (1 + strata))[:, None]
    sample = stratified_order(strata, np.random.default_rng(1))[:125]
    candidates = list(designs(controls, np.empty((500, 0)), strata, sample))
    chosen, error = best_design(candidates, sample, outcome[sample])
    assert error[0] < 1e-6
    assert np.allclose(estimated_values(candidates[chosen[0]], sample, outcome[sample], error), outcome)


def test_regressors_that_the_sample_does_not_show_are_not_trusted() -> None:
    # A control that is nearly constant in the sample, and not beyond it, has a slope that means nothing.
    stream = np.random.default_rng(0)
    control = np.concatenate([stream.normal(size=150) * 1e-3, 5 * stream.random(850)])[:, None]
    outcome, sample = stream.normal(size=(1000, 1)), np.arange(150)
    candidates = list(designs(control, np.empty((1000, 0)), np.zeros(1000, dtype=np.int64), sample))
    _, error = best_design(candidates, sample, outcome[sample])
    assert error[0] > 10


def test_equal_controls_and_rare_classes_do_no_harm() -> None:
    stream = np.random.default_rng(0)
    control = stream.random((400, 1))
    strata = np.concatenate([np.arange(4), np.zeros(396, dtype=np.int64)])
    sample = stream.permutation(400)[:125]
    candidates = list(designs(np.hstack([control, control]), control, strata, sample))
    chosen, error = best_design(candidates, sample, control[sample])
    values = estimated_values(candidates[chosen[0]], sample, control[sample], error)
    assert np.allclose(values, control, atol=1e-6)
    assert error[0] < 1e-6
