"""A paper's figure of the clients' values: a point each, with quartiles."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsim.errors import ConfigError
from fedsim.results.report.drawing.compared import draw_boxes, own_values
from fedsim.results.report.drawing.paper.frame import LETTERS, PAPER, Frame, hide_rest
from fedsim.results.report.drawing.style import folded, metric_label
from fedsim.results.report.facets import Panel, lines_of
from fedsim.training.metrics import LOSS

ROW = 0.3  # inches
NAME = 22  # letters in a line of a name


def clients(panels: Sequence[Panel], frame: Frame, *, metric: str) -> Figure:
    """Draw the personalised models' values on the clients' own test data, of all clients of all seeds.

    Raises
    ------
    ConfigError
        If a line has no values.
    """
    names = list(lines_of(panels))
    down, across = frame.grid(len(panels))
    with rc_context(PAPER):
        height = (ROW * (len(names) + 0.2) + 0.25) * down + 0.4
        figure = Figure(figsize=(frame.width, height), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        every = hide_rest(list(grid.ravel()), len(panels))
        for place, (axes, panel) in enumerate(zip(every, panels, strict=True)):
            for line in panel.lines:
                if not len(own_values(line.group, metric)):
                    raise ConfigError(f"--metric {metric}: {line.name} has no values of its clients to draw")
            draw_boxes(axes, panel.lines, size=2.5, metric=metric, rows=names)
            axes.set_title(folded(panel.title, 40 * (4 - across) // 2))
            is_lowest = place + across >= len(every)
            axes.tick_params(labelbottom=is_lowest)
        every[0].set_yticks(range(1, len(names) + 1), [folded(name, NAME, 2) for name in names])
        figure.supxlabel(f"{LOSS if metric == LOSS else metric_label(metric)} of each client", fontsize=LETTERS)
        return figure
