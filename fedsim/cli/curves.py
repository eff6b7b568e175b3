"""Curves over the rounds, drawn with letters."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import plotext

from fedsim.results.curves import Curves, Measured
from fedsim.results.status import Status
from fedsim.training.metrics import LOSS, label, metric_of

SMALLEST = (20, 6)  # columns and rows of a chart in which anything can be seen
MARKERS = ("braille", "dot", "sd")
COLOURS = ("blue+", "orange+", "green+")
TICKS = 6


@dataclass(frozen=True)
class Chart:
    """A chart of one metric.

    Parameters
    ----------
    metric
        None for the main one of the run's task.
    lines
        What each curve is called, its model, its split, and whether the server measured it.
    """

    metric: str | None
    lines: Sequence[tuple[str, str, str, bool]]

    def curves(self, main: str | None) -> list[Measured]:
        """Return what the curves show in a run with this main metric."""
        metric = self.metric or main or LOSS
        return [Measured(model, split, metric, on_server) for _, model, split, on_server in self.lines]


SHOWN = (
    Chart(None, (("personalised", "personalised", "test", False), ("global", "global", "test", True))),
    Chart(LOSS, (("training loss", "uploaded", "train", False),)),
)


def draw(chart: Chart, curves: Curves, status: Status, width: int, height: int) -> str:
    """Return a chart of that many columns and rows."""
    plot = plotext
    plot.clear_figure()
    plot.limit_size(False, False)
    plot.plotsize(max(width, SMALLEST[0]), max(height, SMALLEST[1]))
    plot.theme("clear")
    metric = chart.metric or status.metric or LOSS
    is_share = metric_of(metric).unit == "share"
    for (name, *_), measured, marker, colour in zip(
        chart.lines, chart.curves(status.metric), MARKERS, COLOURS, strict=False
    ):
        if points := curves.of(measured):
            for place, part in enumerate(_without_gaps(points)):
                values = [100 * value if is_share else value for value in part.values()]
                # One name for all parts; without one, a part has no line in the legend.
                plot.plot(list(part), values, label=None if place else name, marker=marker, color=colour)
    rounds = status.rounds or max(status.round, 1)
    plot.xlim(0, rounds)
    plot.xticks(sorted({round(rounds * tick / (TICKS - 1)) for tick in range(TICKS)}))
    if is_share:
        plot.ylim(0, 100)
        plot.yticks([0, 20, 40, 60, 80, 100])
    plot.title(f"{label(metric)}{' (%)' if is_share else ''} by round")
    return str(plot.build()).rstrip("\n")


def _without_gaps(points: Mapping[int, float]) -> Iterator[dict[int, float]]:
    """Yield the parts of a curve between its gaps."""
    for is_gap, part in groupby(points.items(), key=lambda point: math.isnan(point[1])):
        if not is_gap:
            yield dict(part)
