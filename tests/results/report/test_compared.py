"""Figures of many settings beside each other stay legible."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedsim.config import Config
from fedsim.results.report.charts.curve_data import curves_of_panels
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.drawing.compared import (
    compared_clients,
    compared_costs,
    compared_curves,
    personalised,
    spent,
)
from fedsim.results.report.facets import Panel, panels_of
from fedsim.results.report.palette import COLOURS, DASHES
from tests.results.report import cases

MANY = 30


@pytest.fixture
def panels(tiny: Callable[..., Config]) -> Callable[..., list[Panel]]:
    """Build settings with two seeds each; the first sends nothing."""

    configs = [tiny(seed=seed) for seed in (0, 1)]

    def build(count: int) -> list[Panel]:
        found = []
        for number in range(count):
            accuracy = np.linspace(0.2, 0.5 + 0.4 * number / count, 3)
            members = [
                cases.result(
                    config,
                    np.stack([accuracy + 0.1 * seed, accuracy], axis=1),
                    up=[1000.0 * number] * 3 if number else None,
                    examples=([100 + number] * 3, [100 + number] * 3),
                )
                for seed, config in enumerate(configs)
            ]
            name = f"method_{number:02d}(with_an_option={number})"
            found.append(Group(name, {}, members))
        return panels_of(found)

    return build


def laid_out(figure: Figure) -> Figure:
    figure.draw_without_rendering()
    return figure


def test_as_many_lines_as_there_are_methods_differ_in_colour_and_dashes() -> None:
    assert np.gcd(len(COLOURS), len(DASHES)) == 1
    assert len(COLOURS) * len(DASHES) >= MANY


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, MANY])
def test_the_legend_names_every_line_and_hides_none(count: int, panels: Callable[..., list[Panel]]) -> None:
    every = panels(count)
    figures = [compared_curves(every), compared_costs(every, "bytes"), compared_costs(every, "passes")]
    for figure in map(laid_out, figures):
        legend = figure.legends[0]
        names = [text.get_text() for text in legend.get_texts()]
        assert [name.partition(",")[0] for name in names] == [line.name for line in every[0].lines]
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert all(box.y1 <= axes.get_tightbbox().y0 for axes in figure.axes)
        assert min(axes.get_window_extent().height for axes in figure.axes) >= 1.5 * figure.dpi


def test_what_sends_nothing_is_a_level_line_and_says_so(panels: Callable[..., list[Panel]]) -> None:
    figure = compared_costs(panels(2), "bytes")
    silent, other = figure.axes[0].lines
    assert silent.get_label() == "method_00(with_an_option=0), sends nothing"
    assert np.asarray(silent.get_ydata()) == pytest.approx([0.525, 0.525])
    assert np.asarray(other.get_xdata()).tolist() == [2000, 4000, 6000]
    assert figure.axes[0].get_xscale() == "log"


def test_runs_of_one_seed_count_as_one_in_a_line_and_its_band(tiny: Callable[..., Config]) -> None:
    # Two runs of the first seed, as where runs are grouped by another setting, and one of the second.
    values = [(0, [0.2, 0.2]), (0, [0.4, 0.4]), (1, [0.9, math.nan])]
    lost = (2, 1, "test", "personalised", "accuracy", None)
    members = [
        cases.result(tiny(seed=seed), [[own[0]] * 2, own], more=[lost] if seed else (), up=[1000.0 * (1 + seed)] * 2)
        for seed, own in values
    ]
    group = Group("lr=0.1", {}, members)
    by_run = personalised(group)
    assert by_run.loc[1].tolist() == pytest.approx([0.3, 0.9])
    assert by_run.loc[2].tolist() == pytest.approx([0.3, math.nan], nan_ok=True)
    rows = curves_of_panels(panels_of([group])).rows.set_index("round")
    for key, first in (("p0", 0.6), ("low_p0", 0.3), ("high_p0", 0.9)):
        assert rows[key].tolist() == pytest.approx([first, math.nan], nan_ok=True)
    assert rows["bytes"].tolist() == spent(group, "bytes", rows.index).tolist() == [3000.0, 6000.0]


def test_figures_show_the_metric_that_is_asked_for(tiny: Callable[..., Config]) -> None:
    of_server = [(at, None, "test", "global", "loss", 5.0 - at) for at in (1, 2)]
    member = cases.result(tiny(), [[0.5, 0.5], [0.75, 1.0]], more=of_server, up=[10.0, 10.0])
    every = panels_of([Group("one", {}, [member])])
    curves, costs = compared_curves(every, "loss"), compared_costs(every, "bytes", "loss")
    drawn = [np.asarray(axes.lines[0].get_ydata()).tolist() for axes in (*curves.axes, *costs.axes)]
    assert drawn == [[0.5, 0.125], [4.0, 3.0], [0.5, 0.125]]
    assert {axes.get_ylabel() for axes in (*curves.axes, *costs.axes)} == {"loss (mean over the examples)"}


@pytest.mark.slow
def test_lines_are_means_over_the_seeds_and_bands_their_range(panels: Callable[..., list[Panel]]) -> None:
    axes = compared_curves(panels(1)).axes[0]
    # Of the second seed, one of two clients is 0.1 better.
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx([0.225, 0.375, 0.525])
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(0.2), pytest.approx(0.55))
    assert not compared_curves(panels(MANY)).axes[0].collections


def test_every_client_of_every_seed_is_a_point(panels: Callable[..., list[Panel]]) -> None:
    figure = laid_out(compared_clients(panels(MANY)))
    axes = figure.axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [4] * MANY
    labels = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(labels))
