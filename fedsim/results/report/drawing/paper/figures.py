"""A paper's figures by name."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedsim.results.report.comparing.comparable import comparable, unfinished_texts
from fedsim.results.report.comparing.groups import grouped
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.drawing.paper.barriers import barriers, strip
from fedsim.results.report.drawing.paper.clients import clients
from fedsim.results.report.drawing.paper.curves import curves
from fedsim.results.report.drawing.paper.frame import frame_of
from fedsim.results.report.facets import panels_of
from fedsim.results.result import Result


def paper_figure(
    name: str,
    results: Sequence[Result],
    *,
    width: str = "column",
    facets: Sequence[str] | None = None,
    x: str = "rounds",
    metric: str = "accuracy",
    model: str = "personalised",
    unfinished: bool = False,
) -> tuple[Figure, list[str]]:
    """Return a figure, and what must be said of unfinished runs, a line each.

    Parameters
    ----------
    name
        ``curves``, ``clients``, ``barriers`` or ``strip``.
    width
        ``column`` or ``page``.
    facets
        Settings with a panel for each of their values; by default those that are swept.
    x, metric, model
        What curves are drawn over, and of which metric and model; clients have a metric too.
    unfinished
        Whether unfinished runs are drawn too, all up to the last round that they have in common.

    Raises
    ------
    ConfigError
        If the runs do not have what is to be drawn.
    """
    asked = Question(metric=metric, unfinished=unfinished)
    kept, left_out = comparable(results, asked)
    metric = asked.of(kept).metric
    panels, frame = panels_of(grouped(kept), facets), frame_of(width)
    match name:
        case "curves":
            figure = curves(panels, frame, x=x, metric=metric, model=model)
        case "clients":
            figure = clients(panels, frame, metric=metric)
        case "barriers":
            figure = barriers(panels, frame)
        case _:
            figure = strip(panels, frame)
    return figure, list(unfinished_texts(kept, left_out))
