"""Figures for a paper are as large as they say, readable, and drawn from the records."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from fedsim.analysis.mixing.names import AVERAGE
from fedsim.config import Config, choices, with_settings
from fedsim.experiment import run as experiment
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from fedsim.results.report.comparing.costs import spent
from fedsim.results.report.drawing.paper.figures import paper_figure
from fedsim.results.report.drawing.paper.frame import paper_file
from fedsim.results.report.drawing.plotting import Percents
from fedsim.results.report.palette import looks
from fedsim.results.result import Result
from tests.conftest import TINY

FIGURES = ("curves", "clients", "barriers", "strip")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Play two strategies at two alphas, measured on the clients' own data."""
    found = []
    for alpha in (0.3, 10.0):
        for name in ("full", "local"):
            settings = with_settings(
                TINY,
                {
                    ("clients",): 2,
                    ("barriers",): {"every": 1, "on": ["server", "clients"], "examples": 20, "measures": []},
                    ("partition", "alpha"): alpha,
                    ("strategy",): {"name": name},
                },
            )
            folder = RunFolder(tmp_path_factory.mktemp("runs") / f"{name}-{alpha}")
            experiment.run(choices.resolve(Config.parse(settings, "")), folder, lambda summary: None)
            found.append(read_result(folder))
    return found


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "inches"), [("column", 3.3), ("page", 7.0)])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_as_wide_as_it_says_with_letters_of_8_points_inside_it(
    name: str, width: str, inches: float, results: list[Result]
) -> None:
    figure, _ = paper_figure(name, results, width=width)
    written = paper_file(figure, "pdf")
    box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ([\d.]+) *\]", written)
    assert box
    assert float(box[1]) == pytest.approx(72 * inches)
    assert b"/Type3" not in written  # fonts are embedded as TrueType
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert {text.get_fontsize() for text in texts} == {8}
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
    assert all(each.x0 >= -1 and each.x1 <= figure.bbox.x1 + 1 and each.y0 >= -1 for each in boxes)
    for legend in figure.legends:
        extent = legend.get_window_extent()
        assert extent.x0 >= 0
        assert extent.y0 >= 0
        assert extent.x1 <= figure.bbox.x1
        assert all(extent.y1 <= axes.get_tightbbox().y0 for axes in panels(figure))


def test_curves_are_the_records_with_a_colour_per_strategy(results: list[Result]) -> None:
    figure, _ = paper_figure("curves", results, x="bytes")
    colours = {name: look.colour for name, look in looks(result.strategy for result in results).items()}
    assert [axes.get_title() for axes in panels(figure)] == ["alpha = 0.3", "alpha = 10.0"]
    for place, axes in enumerate(panels(figure)):
        full, local = axes.lines
        mine = results[2 * place]
        assert np.asarray(full.get_xdata()).tolist() == spent(mine, "bytes").tolist()
        assert np.asarray(full.get_ydata()).tolist() == mine.mean_by_round().tolist()
        assert set(np.asarray(local.get_ydata()).tolist()) == {results[2 * place + 1].mean_by_round().iloc[-1]}
        assert [line.get_color() for line in (full, local)] == [colours[each.strategy] for each in results[:2]]
    [by_round] = panels(paper_figure("curves", results[:1], model="global")[0])
    assert np.asarray(by_round.lines[0].get_xdata()).tolist() == [1, 2]
    assert np.asarray(by_round.lines[0].get_ydata()).tolist() == results[0].on_server("global").tolist()


def test_points_are_the_clients_and_cells_the_clients_own_barriers(results: list[Result]) -> None:
    axes = panels(paper_figure("clients", results)[0])[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert sorted(points[0].get_xdata()) == sorted(results[0].by_client("personalised"))
    drawn = panels(paper_figure("barriers", results)[0])
    assert [axes.get_title().partition("\n")[0] for axes in drawn[:2]] == [result.strategy for result in results[:2]]
    cells = np.asarray(drawn[0].images[0].get_array())
    assert cells[0] == pytest.approx(own_barriers(results[0], "full").to_numpy())


def test_a_strip_has_a_cell_per_layer_with_its_own_cost(results: list[Result]) -> None:
    axes = panels(paper_figure("strip", results)[0])[0]
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    layers = [label.get_text() for label in panels(paper_figure("strip", results[:1])[0])[0].get_xticklabels()]
    assert len(cells) == 2 * len(layers) == 2 * len({cell.get_x() for cell in cells})
    assert sum(cell.get_width() for cell in cells) == pytest.approx(2)
    written = {text.get_text().strip("()") for text in axes.texts}
    expected = f"{own_barriers(results[0], layers[0]).iloc[-1]:+.2f}".replace("-", "\u2212")
    assert expected in written


def own_barriers(result: Result, group: str) -> pd.Series:
    rows = result.barriers
    rows = rows[(rows["data"] == "clients") & (rows["group"] == group) & (rows["other"] == AVERAGE)]
    return rows.groupby("round")["loss_own_base"].mean()


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.8, 0.9, 1.0], ["80", "90", "100"]),
        ([0.8, 0.825, 0.85], ["80.0", "82.5", "85.0"]),
        ([-0.0, 0.0005], ["0.00", "0.05"]),
    ],
)
def test_a_tick_is_its_value_with_as_many_decimals_as_the_others(values: list[float], texts: list[str]) -> None:
    assert Percents().format_ticks(values) == texts
