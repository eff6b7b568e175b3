import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedsim.analysis import barriers, count_evaluations
from fedsim.analysis.barriers import measure
from fedsim.analysis.mixing.groups import named_groups
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.models.architectures import MODELS
from fedsim.models.layers import Layers
from fedsim.training.evaluation import evaluate
from tests.analysis.cases import N, models, norm_net, row

BARRIERS = [
    f"{metric}_{name}" for metric in ("loss", "error") for name in ("mean_ends", "swap_ends", "own_base", "chord")
]


def test_identical_models_give_zero() -> None:
    model, states, inputs, targets = models(1)
    copies = [states[0]] * 3
    for against in ("average", "pairs"):
        table = barriers(model, copies, inputs, targets, groups=["layers", "full"], against=against, weights=[1, 2, 5])
        assert table[BARRIERS].abs().max().max() < 1e-14


def test_moving_every_layer_is_the_full_barrier_for_every_base() -> None:
    model, states, inputs, targets = models(3)
    table = barriers(
        model, states, inputs, targets, groups=["full", {"every": "first:1 | !first:1"}], weights=[1, 2, 3]
    )
    assert table["loss"].nunique() == 1
    average = {key: sum(w * s[key] for w, s in zip((1, 2, 3), states, strict=True)) / 6 for key in states[0]}
    model.load_state_dict(average)
    own = []
    for state in states:
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        own.append(evaluate(other, inputs, targets).loss)
    expected = evaluate(model, inputs, targets).loss - np.average(own, weights=[1, 2, 3])
    assert np.allclose(table["loss_mean_ends"], expected, atol=1e-12)
    assert np.allclose(table.query("group == 'full'")["loss_own_base"], table["loss"][0] - np.array(own), atol=1e-12)


def plain_barriers(model, states, inputs, targets, layers: set[str], base: int, other: int, t: float, weights) -> dict:
    """The definition, slowly: copy, mix by hand, load, evaluate."""

    def loss(state: dict) -> np.ndarray:
        net = copy.deepcopy(model)
        net.load_state_dict(state)
        net.eval()
        with torch.no_grad():
            outputs = net(inputs)
        cross_entropy = nn.functional.cross_entropy(outputs, targets).item()
        return np.array([cross_entropy, (outputs.argmax(1) != targets).double().mean().item()])

    total = sum(weights)
    average = {key: sum(w * s[key].double() for w, s in zip(weights, states, strict=True)) / total for key in states[0]}
    end = average if other == -1 else states[other]

    def mixed(s: float) -> dict:
        return {
            key: (1 - s) * value + s * end[key]
            if key.rpartition(".")[0] in layers and value.is_floating_point()
            else value
            for key, value in states[base].items()
        }

    own = [loss(state) for state in states]
    if other == -1:
        mean_ends = sum(w * value for w, value in zip(weights, own, strict=True)) / total
    else:
        mean_ends = (own[base] + own[other]) / 2
    value = loss(mixed(t))
    columns = {
        "": value,
        "_mean_ends": value - mean_ends,
        "_swap_ends": value - (1 - t) * own[base] - t * loss(mixed(1.0)),
        "_own_base": value - own[base],
    }
    if other != -1:
        columns["_chord"] = value - (1 - t) * own[base] - t * own[other]
    return {f"{metric}{name}": pair[k] for name, pair in columns.items() for k, metric in enumerate(("loss", "error"))}


@pytest.mark.parametrize("against", ["average", "pairs"])
def test_every_column_agrees_with_a_slow_implementation(against: str) -> None:
    model, states, inputs, targets = models(3, norm_net)
    for number, state in enumerate(states):
        state["1.running_mean"] += 0.3 * number
        state["1.running_var"] *= 1.0 + 0.5 * number
    weights = [1.0, 2.0, 5.0]
    groups = {"some": "0 | 1", "top": "head"}
    table = barriers(
        model, states, inputs, targets, groups=[groups, "layers"], against=against, ts=[0.25, 1.0], weights=weights
    )
    layers = {"some": {"0", "1"}, "top": {"3"}, "0": {"0"}, "1": {"1"}, "3": {"3"}}
    assert len(table) == 5 * 2 * (3 if against == "average" else 6)
    for _, each in table.iterrows():
        slow = plain_barriers(
            model, states, inputs, targets, layers[each["group"]], each["base"], each["other"], each["t"], weights
        )
        for column, value in slow.items():
            assert each[column] == pytest.approx(value, abs=1e-12), (column, dict(each))


def test_a_swap_of_some_layers_is_the_other_model_with_the_rest() -> None:
    model, states, inputs, targets = models(2)
    table = barriers(
        model, states, inputs, targets, groups={"a": "first:1", "b": "!first:1"}, against="pairs", ts=[0.0, 1.0]
    )
    assert row(table, group="a", base=0, t=1.0)["loss"] == row(table, group="b", base=1, t=1.0)["loss"]
    assert row(table, group="a", base=0, t=1.0)["loss"] != row(table, group="a", base=1, t=1.0)["loss"]


def test_the_full_barrier_is_symmetric_and_a_layers_is_not() -> None:
    model, states, inputs, targets = models(2)
    table = barriers(model, states, inputs, targets, groups=["full", "layers"], against="pairs", ts=[0.25, 0.75])
    assert row(table, group="full", base=0, t=0.25)["loss"] == pytest.approx(
        row(table, group="full", base=1, t=0.75)["loss"], abs=1e-14
    )
    first = row(table, group="0", base=0, t=0.25)["loss"]
    assert abs(first - row(table, group="0", base=1, t=0.75)["loss"]) > 1e-4


def test_standard_errors_are_those_of_paired_differences() -> None:
    model, states, inputs, targets = models(2)
    table = barriers(model, states, inputs, targets, groups={"h": "head"})
    mixed = states[0] | {key: (states[0][key] + states[1][key]) / 2 for key in ("4.weight", "4.bias")}
    losses = []
    for state in (mixed, states[0]):
        model.load_state_dict(state)
        losses.append(nn.functional.cross_entropy(model(inputs), targets, reduction="none").detach().numpy())
    difference = losses[0] - losses[1]
    expected = difference.std(ddof=1) / np.sqrt(N)
    assert row(table, base=0)["loss_own_base_se"] == pytest.approx(expected, rel=1e-9)


def test_the_number_of_threads_changes_nothing_and_the_model_stays_as_it_was() -> None:
    model, states, inputs, targets = models(3)
    before, model.training = copy.deepcopy(model.state_dict()), True
    one = barriers(model, states, inputs, targets, groups=["layers", "full"], against="pairs")
    two = barriers(model, states, inputs, targets, groups=["layers", "full"], against="pairs", threads=3)
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_pairs_are_ordered_and_only_those_given_are_measured() -> None:
    model, states, inputs, targets = models(3)
    table = barriers(model, states, inputs, targets, groups="full", against=[(2, 0)])
    assert table[["base", "other", "t"]].to_numpy().tolist() == [[2, 0, 0.0], [2, 0, 0.5], [2, 0, 1.0]]
    assert table["loss_own_base"][0] == 0


def test_residual_networks_with_normalisation_work() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [MODELS["resnet18"]((1, 8, 8), 3, norm="batch", width=2) for _ in range(2)]
        inputs, targets = torch.randn(10, 1, 8, 8), torch.randint(0, 3, (10,))
    table = barriers(nets[0], [net.state_dict() for net in nets], inputs, targets, groups=["layers", "full"])
    assert len(table) == 2 * (len(Layers.of(nets[0])) + 1)
    assert table["loss"].notna().all()


def test_counting_agrees_with_what_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, inputs, targets = models(3)
    asked, plain = [], MixedModels.evaluate
    monkeypatch.setattr(MixedModels, "evaluate", lambda self, *args: asked.append(plain(self, *args)) or asked[-1])
    for against in ("average", [(0, 1), (1, 0)]):
        for more in ({}, {"ts": [0.25]}, {"ts": [0.25], "references": ["own_base"]}):
            options = {"groups": ["full", "layers"], "against": against, **more}
            asked.clear()
            barriers(model, states, inputs, targets, **options)
            assert [len(evaluated) for evaluated in asked] == [count_evaluations(model, 3, **options)]
    # 3 models, 1 full average and 3 layers of each with the average.
    assert count_evaluations(model, 3, groups=["full", "layers"], against="average") == 3 + 1 + 9


def test_growing_groups_end_with_the_full_barrier_and_begin_with_one_layer() -> None:
    model, states, inputs, targets = models(3)
    kinds = ["full", "layers", "cumulative-shallow", "cumulative-deep", {"two": "first:2"}, {"last two": "last:2"}]
    for options in ({"weights": [1.0, 2.0, 5.0]}, {"against": "pairs", "ts": [0.25]}):
        table = barriers(model, states, inputs, targets, groups=kinds, **options)
        rows = {name: path.drop(columns="group").reset_index(drop=True) for name, path in table.groupby("group")}
        equal = {"shallow:3": "full", "deep:3": "full", "shallow:1": "0", "deep:1": "4", "shallow:2": "two"}
        for growing, fixed in (equal | {"deep:2": "last two"}).items():
            pd.testing.assert_frame_equal(rows[growing], rows[fixed], check_exact=True)
        assert (rows["shallow:2"]["loss"] != rows["deep:2"]["loss"]).all()


def test_moving_nothing_costs_nothing() -> None:
    model, states, inputs, targets = models(2)
    for options in ({}, {"against": "pairs", "ts": [0.25, 1.0]}):
        table = barriers(model, states, inputs, targets, groups={"nothing": "none"}, **options)
        assert (table[["loss_own_base", "error_own_base", "loss_own_base_se"]] == 0).all(axis=None)


def test_all_weight_on_one_model_gives_that_model() -> None:
    model, states, inputs, targets = models(3)
    table = barriers(model, states, inputs, targets, groups=["full", "layers"], weights=[1e-30, 1.0, 1e-30])
    # Moving a model towards itself costs nothing, whichever the layers.
    for name in ("mean_ends", "own_base"):
        assert table.query("base == 1")[f"loss_{name}"].abs().max() < 1e-12
    assert table.query("group == 'full'")["loss_mean_ends"].abs().max() < 1e-12
    assert table.query("base == 0 and group != 'full'")["loss_mean_ends"].abs().min() > 1e-4


def test_adding_a_constant_to_all_outputs_changes_no_barrier() -> None:
    model, states, inputs, targets = models(2)
    shifted = [state | {"4.bias": state["4.bias"] + 3.0} for state in states]
    options = {"groups": ["full", "layers"], "against": "pairs", "ts": [0.25, 1.0]}
    before, after = (barriers(model, each, inputs, targets, **options) for each in (states, shifted))
    pd.testing.assert_frame_equal(before, after, rtol=0, atol=1e-12)


def test_references_choose_columns_and_what_is_evaluated() -> None:
    model, states, inputs, targets = models(2)
    options = {"groups": ["full", "layers"], "against": "pairs", "ts": [0.25]}
    every = barriers(model, states, inputs, targets, **options)
    some = measure(model, states, inputs, targets, **options, references=["chord", "own_base"])
    assert not any("ends" in name for name in some.table)
    pd.testing.assert_frame_equal(some.table, every[some.table.columns], rtol=1e-12)
    # Two models, the full mix, which is another one from each end, and three layers of each; no swaps.
    assert some.values["loss"].shape == (2 + 2 + 2 * 3, N)


def test_a_measurement_keeps_the_losses_that_its_table_is_made_of() -> None:
    model, states, inputs, targets = models(3)
    measured = measure(model, states, inputs, targets, groups=["full", "layers"], against="pairs", ts=[0.25, 1.0])
    for metric in ("loss", "error"):
        for reference in ("mean_ends", "swap_ends", "own_base", "chord"):
            differences = measured.comparisons.barriers(measured.values[metric], reference)
            assert np.allclose(measured.table[f"{metric}_{reference}"], differences.mean(1), atol=1e-14)
            expected = differences.std(1, ddof=1) / np.sqrt(N)
            assert np.allclose(measured.table[f"{metric}_{reference}_se"], expected, atol=1e-14)
    assert measured.sampling.text == "free"


def test_bands_stand_next_to_each_barrier_and_change_nothing_else() -> None:
    model, states, inputs, targets = models(2)
    options = {"groups": ["full", "layers"], "references": ["own_base", "chord"]}
    plain = barriers(model, states, inputs, targets, **options)
    table = barriers(model, states, inputs, targets, **options, bands=0.95)
    pd.testing.assert_frame_equal(table[plain.columns], plain, check_exact=True)
    ends = [
        f"{metric}_{name}_{end}"
        for metric in ("loss", "error")
        for name in ("own_base", "chord")
        for end in ("low", "high")
    ]
    assert set(table.columns) - set(plain.columns) == set(ends)
    assert (
        (table["loss_own_base_low"] < table["loss_own_base"]) & (table["loss_own_base"] < table["loss_own_base_high"])
    ).all()
    assert table[["loss_chord_low", "loss_chord_high"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(table, barriers(model, states, inputs, targets, **options, bands=0.95))


def test_a_single_example_has_no_standard_errors() -> None:
    model, states, inputs, targets = models(2)
    table = barriers(model, states, inputs[:1], targets[:1], bands=0.95)
    assert table["loss_own_base"].notna().all()
    assert table[["loss_own_base_se", "loss_own_base_low", "error_mean_ends_high"]].isna().all(axis=None)


def test_a_model_that_overflows_spoils_no_other_row() -> None:
    model, states, inputs, targets = models(3)
    broken = [*states[:2], states[2] | {"4.weight": states[2]["4.weight"] * 1e308}]
    options = {"groups": ["full", "layers"], "against": "pairs", "ts": [0.5]}
    table = barriers(model, broken, inputs, targets, **options, bands=0.95).query("base != 2 and other != 2")
    healthy = barriers(model, states[:2], inputs, targets, **options)
    pd.testing.assert_frame_equal(table[healthy.columns].reset_index(drop=True), healthy, rtol=1e-9)
    assert table["loss_chord_low"].notna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": "avrage"}, "against = 'avrage'"),
        ({"groups": "layer"}, "groups has 'layer'"),
        ({"groups": {"x": "hed"}}, "'hed' matches nothing"),
        ({"groups": {"x": ("2", "nope")}}, "group 'x' has 'nope', which is no layer that trains; layers are: 0, 2, 4"),
        ({"ts": [1.5]}, "each must be from 0 to 1"),
        ({"against": [(0, 2)]}, r"pair \(0, 2\)"),
        ({"weights": [1.0]}, "weights"),
        ({"weights": [1.0, -1.0]}, "must be positive"),
        ({"references": ["cord"]}, "references has 'cord'"),
        ({"bands": 95}, "bands = 95 must be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(options: dict, message: str) -> None:
    model, states, inputs, targets = models(2)
    with pytest.raises(ValueError, match=message):
        barriers(model, states, inputs, targets, **options)


def test_no_states_is_an_error() -> None:
    model, _, inputs, targets = models(1)
    with pytest.raises(ValueError, match="no states"):
        barriers(model, [], inputs, targets)


def test_barriers_of_a_model_whose_loss_is_not_finite_are_missing_and_no_others() -> None:
    model, states, inputs, targets = models(3)
    spoilt = {key: value * torch.nan for key, value in states[2].items()}
    wanted = {"groups": ["full", "layers"], "against": [(0, 1), (1, 2), (2, 0)], "ts": [0.5]}
    table, expected = (barriers(model, [*states[:2], last], inputs, targets, **wanted) for last in (spoilt, states[2]))
    of_spoilt = (table["base"] == 2) | (table["other"] == 2)
    for column in ("loss_mean_ends", "error_mean_ends", "error_own_base"):
        assert (table[column].isna() == of_spoilt).all()
    pd.testing.assert_frame_equal(table[~of_spoilt], expected[~of_spoilt])


def test_groups_of_exact_names_are_no_expressions() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "other": nn.LayerNorm(2)})
    layers = Layers.of(model)
    exact = {"norm": ("norm",), "body": ("body",)}
    assert named_groups(layers, exact) == exact
    assert named_groups(layers, {"norm": "norm"}) == {"norm": ("norm", "other")}
