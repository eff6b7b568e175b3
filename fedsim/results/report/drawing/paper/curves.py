"""A paper's figure of values over rounds, bytes, passes or seconds."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsim.errors import ConfigError
from fedsim.results.report.drawing.compared import (
    WRITTEN,
    cost_axis,
    draw_cost,
    draw_seeds,
    on_server,
    personalised,
    spent,
)
from fedsim.results.report.drawing.paper.frame import PAPER, Frame, hide_rest, legend_below
from fedsim.results.report.drawing.style import folded, metric_axis, metric_label, round_axis
from fedsim.results.report.facets import Panel
from fedsim.training.metrics import LOSS

X_AXES = {
    "rounds": "round",
    "bytes": "traffic, up and down",
    "passes": "training passes (examples)",
    "seconds": "wall time (s)",
}
HEIGHT = 1.75  # inches of a panel
MARKER = 3  # points


def curves(panels: Sequence[Panel], frame: Frame, *, x: str = "rounds", metric: str, model: str) -> Figure:
    """Draw a line per strategy, the mean over its seeds, with their range as a band.

    Parameters
    ----------
    x
        ``rounds``, or what was spent so far: ``bytes``, ``passes`` or ``seconds``.
    model
        ``personalised``: the clients' mean on their own test data; ``global``: the server's on the server's.

    Raises
    ------
    ConfigError
        If a line has no values, or no record of what was spent.
    """
    of = personalised if model == "personalised" else on_server
    down, across = frame.grid(len(panels))
    with rc_context(PAPER):
        figure = Figure(figsize=(frame.width, HEIGHT * down + 0.25), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        every = hide_rest(list(grid.ravel()), len(panels))
        for axes, panel in zip(every, panels, strict=True):
            for line in panel.lines:
                values = of(line.group, metric)
                if values.empty:
                    raise ConfigError(f"--metric {metric}: {line.name} has no values of the {model} model to draw")
                if x == "rounds":
                    draw_seeds(axes, line, values, size=MARKER)
                    continue
                if spent(line.group, x, values.index).isna().all():
                    raise ConfigError(f"--x {x}: {line.name} has no record of them; use --x rounds")
                draw_cost(axes, line, values, x, size=MARKER)
            axes.set_title(folded(panel.title, 40 * (4 - across) // 2))
        for row in grid:
            metric_axis(row[0], metric)
            row[0].set_ylabel(f"{model} {LOSS if metric == LOSS else metric_label(metric)}")
        for place, axes in enumerate(every):
            if x == "rounds":
                round_axis(axes)
            elif place == 0:
                cost_axis(axes, x)
            is_lowest = place + across >= len(every)
            axes.tick_params(labelbottom=is_lowest)
            axes.set_xlabel(X_AXES[x] if is_lowest else "")
        if x in WRITTEN and every[0].get_xscale() == "linear":
            every[0].xaxis.get_major_locator().set_params(nbins=4)  # type: ignore[call-arg]
        legend_below(figure, every)
        return figure
