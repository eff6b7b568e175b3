"""Figures of features and units show the values of their tables."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.results.report.drawing import connectivity
from fedsim.results.report.drawing.layer_curves import MOST_NAMES, LayerCurves, LayerPanel, spread
from fedsim.results.report.drawing.small_multiples import Curve
from fedsim.results.report.drawing.style import log_values, save
from fedsim.results.report.pages.feature_sections import connectivity_sections, matching_sections, stitching_sections

LAYERS = ("zeta", "layer1.0.conv1", "fc")  # in forward order, which is not that of the alphabet


def features(number: int = 1, others: tuple[int, ...] = (-1,), t: float = 0.5) -> pd.DataFrame:
    """Return a table whose 1 - cosine is 0.01 times the round, the layer's place and, of two bases, 1 and 3."""
    rows = []
    for place, layer in enumerate(LAYERS, start=1):
        for other in others:
            for base in (0, 1):
                gap = 0.01 * number * place * (1 + 2 * base)
                explained = place > 1  # the first layer takes the inputs
                rows.append(
                    {"layer": layer, "base": base, "other": other, "t": t, "n": 50, "cosine": 1 - gap}
                    | {"cosine_ends": 0.6, "ratio": gap / 0.4, "coefficient": 1 - gap, "additivity": np.nan}
                    | {"commutativity": 0.02 * place if explained else np.nan}
                    | {
                        "weight_distance": 0.5 if explained else np.nan,
                        "feature_distance": 0.3 if explained else np.nan,
                    }
                )
        if -1 in others:
            rows.append({"layer": layer, "base": -1, "other": -1, "t": 1.0, "n": 50, "cosine": 0.5, "cosine_ends": 0.7})
            rows[-1] |= {"ratio": 0.5 / 0.3, "coefficient": 0.9}
    return pd.DataFrame(rows).assign(round=number, data="server", matching="none")


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left") or axes.get_title(): axes for axes in figure.axes if axes.lines or axes.images}


def curves(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}


def cells(figure: Figure) -> dict[str, np.ndarray]:
    return {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images}


@pytest.mark.slow
def test_connectivity_is_drawn_by_layer_in_forward_order_with_its_baseline() -> None:
    drawn = panels(connectivity.connectivity(pd.concat([features(1), features(3)])).figure())
    assert list(drawn) == [  # nothing is known of additivity
        "1 - cosine, mean over the examples",
        "ratio of the two",
        "coefficient of the mix in the mixed features",
        "commutativity: relative squared distances",
    ]
    gaps, ratios, coefficients, swapped = (curves(axes) for axes in drawn.values())
    last = 0.03 * np.array([1, 2, 3]) * 2  # the last round's; the mean of once and thrice
    assert gaps["mixed model and mix"] == pytest.approx(last)
    assert gaps["the two models"] == pytest.approx([0.4] * 3)
    assert gaps["average of all\nand mix of all"] == pytest.approx([0.5] * 3)
    assert ratios["mixed models"] == pytest.approx(last / 0.4)
    assert ratios["average of all"] == pytest.approx([0.5 / 0.3] * 3)
    assert coefficients["mixed models"] == pytest.approx(1 - last)
    assert swapped["weights swapped"] == pytest.approx([0.04, 0.06])  # not of the first layer
    assert swapped["the weights"] == pytest.approx([0.5, 0.5])
    assert swapped["the layer's inputs"] == pytest.approx([0.3, 0.3])
    first, *_, lowest = drawn.values()
    assert [label.get_text() for label in lowest.get_xticklabels()] == list(LAYERS)
    assert first.get_yscale() == lowest.get_yscale() == "log"
    [band, *_] = first.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.03, 0.27))


def test_the_ratio_is_mapped_by_layer_and_round() -> None:
    [(title, values)] = cells(connectivity.ratios(pd.concat([features(1), features(3)])).figure()).items()
    assert title == "1 - cosine of mixed model and mix, over that of the two"
    assert values == pytest.approx(np.outer([1, 2, 3], [1, 3]) * 0.02 / 0.4)  # without the average of all


def test_clients_with_their_average_and_with_each_other_have_sections_of_their_own() -> None:
    pairs = [features(2, (5,), t) for t in (0.25, 0.5)]
    pairs[0]["cosine"] = 0.0
    rows = pd.concat([features(1), features(2), *pairs])
    sections = {section.name: section for section in connectivity_sections(rows, "server")}
    assert list(sections) == ["connectivity", "connectivity-rounds", "connectivity-pairs"]
    assert "each client with the average of all, at t = 0.5" in sections["connectivity"].text
    assert "after round 2: 2 pairs of clients, at t = 0.5" in sections["connectivity-pairs"].text
    assert "Read the ratio" in sections["connectivity-pairs"].text
    gaps = curves(sections["connectivity-pairs"].figure.axes[0])
    assert list(gaps) == ["mixed model and mix", "the two models"]
    assert gaps["mixed model and mix"] == pytest.approx(0.02 * np.array([1, 2, 3]) * 2)  # nothing of t = 0.25


def test_stitched_models_are_drawn_next_to_the_two_by_themselves() -> None:
    common: dict[str, Any] = {"n": 50, "loss_ends": 1.0, "error_ends": 0.1}
    rows = pd.DataFrame(
        common | {"layer": layer, "base": base, "other": other, "loss": 2.0 + base, "error": 0.2 * place, "round": 4}
        for place, layer in enumerate(LAYERS)
        for base, other in ((0, -1), (1, -1), (0, 1))
    )
    average, pairs = stitching_sections(rows, "server")
    assert (average.name, pairs.name) == ("stitching", "stitching-pairs")
    assert "after round 4" in average.text
    drawn = panels(average.figure)
    assert curves(drawn["loss (nats)"])["stitched here"] == pytest.approx([2.5] * 3)
    assert curves(drawn["loss (nats)"])["the two models"] == pytest.approx([1.0] * 3)
    assert curves(drawn["error (%)"])["stitched here"] == pytest.approx([0.0, 20.0, 40.0])
    assert curves(panels(pairs.figure)["loss (nats)"])["stitched here"] == pytest.approx([2.0] * 3)


def test_cka_is_the_mean_over_the_pairs_by_layer_and_round() -> None:
    rows = pd.DataFrame(
        {"layer": layer, "base": 0, "other": other, "cka": 0.2 * other + 0.1 * number, "round": number}
        for layer in LAYERS
        for other in (1, 2)
        for number in (1, 2)
    )
    [values] = cells(connectivity.cka(rows).figure()).values()
    assert values == pytest.approx(np.array([[0.4, 0.5]] * 3))


def spectra() -> pd.DataFrame:
    values = {-1: [5.0, 1.0, 0.0], 0: [4.0, 2.0, 1.0], 1: [2.0, 0.5, 0.2]}
    return pd.DataFrame(
        {"layer": layer, "base": base, "stable_rank": 2.0 + base + number, "singular_values": own, "round": number}
        for number in (1, 2)
        for layer in LAYERS[:2]
        for base, own in values.items()
    ).assign(base_name=lambda rows: rows["base"].map({-1: "average", 0: "b.pt", 1: "a.pt"}))


def test_stable_ranks_of_the_models_and_of_their_average_are_mapped() -> None:
    drawn = cells(connectivity.stable_ranks(spectra()).figure())
    assert drawn["models, mean"] == pytest.approx(np.array([[3.5, 4.5]] * 2))
    assert drawn["their average"] == pytest.approx(np.array([[2.0, 3.0]] * 2))
    of_checkpoints = connectivity.stable_ranks(spectra().query("round == 1"), "base_name").figure()
    [values] = cells(of_checkpoints).values()
    assert values == pytest.approx(np.array([[2.0, 3.0, 4.0]] * 2))
    assert [label.get_text() for label in of_checkpoints.axes[0].get_xticklabels()] == ["average", "b.pt", "a.pt"]


def test_singular_values_are_drawn_over_the_largest_on_two_logarithmic_scales() -> None:
    figure = connectivity.spectra(spectra()).figure()
    axes = panels(figure)["zeta"]
    drawn = curves(axes)
    assert drawn["models, mean"] == pytest.approx([1.0, 0.375, 0.175])
    assert drawn["their average"] == pytest.approx([1.0, 0.2])  # 0 is on no logarithmic scale
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylim() == pytest.approx((0.1 / 10**0.06, 10**0.06))  # the least is 0.2 / 2


def test_the_first_clients_units_do_not_enter_the_share_that_moved() -> None:
    rows = pd.DataFrame(
        {"base": base, "order": order, "units": 12, "moved": moved, "round": number}
        for number, clients in ((1, (3, 0, 2)), (2, (0, 5)))
        for order in ("fc1", "conv1")
        for base, moved in zip(clients, (0.0, 0.5, 1.0), strict=False)
    )
    [section] = matching_sections(rows, "server")
    [values] = cells(section.figure).values()
    assert values == pytest.approx(np.array([[75.0, 50.0]] * 2))
    names = [label.get_text() for label in section.figure.axes[0].get_yticklabels()]
    assert names == ["fc1 (12)", "conv1 (12)"]


def test_many_layers_have_names_that_do_not_overlap() -> None:
    rows = pd.DataFrame({"layer": [f"blocks.{k}.attention.projection" for k in range(150)], "value": 0.5})
    figure = LayerCurves([LayerPanel("half", [Curve("a", spread(rows, rows["value"]), 0)])]).figure()
    save(figure, "png")
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert MOST_NAMES / 2 < len(boxes) <= MOST_NAMES
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("values", [(0.55, 0.9), (0.2, 3.0), (1e-6, 0.3)])
def test_a_logarithmic_scale_has_some_numbers_and_none_for_minor_ticks(values: tuple[float, float]) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_ylim(*values)
    log_values(axes)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_yticklabels() if values[0] <= label.get_position()[1] <= values[1]]
    assert 2 <= len(labels) <= 5
    assert all(labels)
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))


def test_equal_models_have_nothing_on_a_logarithmic_scale() -> None:
    rows = features().assign(cosine=1.0, cosine_ends=1.0, ratio=np.nan)
    assert save(connectivity.connectivity(rows).figure(), "svg").startswith(b"<?xml")


def test_a_single_model_is_matched_to_nothing_and_has_no_section() -> None:
    rows = pd.DataFrame({"base": 0, "order": ["fc1", "fc2"], "units": 4, "moved": 0.0, "round": [1, 1]})
    assert not list(matching_sections(rows, "server"))
    two = pd.concat([rows, rows.assign(base=1, moved=0.5)])
    assert [section.name for section in matching_sections(two, "server")] == ["matching"]
