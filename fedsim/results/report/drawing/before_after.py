"""The figure of each client before and after training on its own data."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import STYLE, WIDTH, legend_outside, metric_axis
from fedsim.results.report.palette import COLOURS
from fedsim.results.result import Result
from fedsim.training.metrics import metric_of

MODELS = {
    "global": "global",
    "personalised": "as received",
    "trained": "after local training",
    "fine-tuned": "after fine-tuning",
    "knn": "with neighbours",
}
TITLES = {"test": "Own test data", "server": "Server's test data", "unseen": "Unseen clients"}
# For each model in the figure: marker, colour, fill and size. The model as received is a ring around the others.
POINTS = {
    "global": ("_", "#555555", "#555555", 7),
    "personalised": ("o", COLOURS[0], "white", 9),
    "trained": ("^", COLOURS[2], COLOURS[2], 5),
    "fine-tuned": ("o", COLOURS[1], COLOURS[1], 5),
    "knn": ("s", COLOURS[3], COLOURS[3], 4),
}
MANY_CLIENTS = 40  # more are drawn without their numbers


def before_and_after(result: Result) -> plotting.Figure:
    """Draw each client's accuracy before and after training on its own data."""
    panels = models_by_client(result)
    with plotting.rc_context(STYLE):
        figure = plotting.Figure(figsize=(WIDTH, 3.6), layout="constrained")
        # A panel with few clients keeps room for its title.
        widths = [max(len(values), 0.35 * max(map(len, panels.values()))) for values in panels.values()]
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
        for axes, (data, values) in zip(every, panels.items(), strict=True):
            _draw_points(axes, values)
            axes.set_title(TITLES[data])
        metric_axis(every[0], result.main)
        if metric_of(result.main).unit == "share":
            every[0].set_ylim(-0.04, 1.04)
        legend_outside(figure, every[0])
        return figure


def models_by_client(result: Result) -> dict[str, pd.DataFrame]:
    """Return accuracy by client (rows) and model (columns) for all data on which more was measured than by default."""
    panels = {}
    for data in TITLES:
        columns = {model: values_by_client(result, model, data, result.evaluated, of_server=False) for model in MODELS}
        values = pd.DataFrame({model: column for model, column in columns.items() if len(column)})
        if "personalised" in values and (data == "unseen" or {"trained", "fine-tuned"} & set(values)):
            panels[data] = values.sort_values("personalised", kind="stable")
    return panels if any({"trained", "fine-tuned"} & set(values) for values in panels.values()) else {}


def values_by_client(result: Result, model: str, data: str, server_round: int, of_server: bool) -> pd.Series:
    """Return the main metric of a model on some data in a round: of each client, or the server's own."""
    split = "test" if of_server and data == "server" else data
    rows = result.of(model, split=split, server=of_server)
    return rows[rows["round"] == server_round].set_index("client")["value"].astype(float).sort_index()


def trained_end(values: pd.DataFrame) -> str:
    """Return the model that a line leads to from the one as received: the fine-tuned one where there is one."""
    return "fine-tuned" if "fine-tuned" in values else "trained"


def _draw_points(axes: plotting.Axes, values: pd.DataFrame) -> None:
    """Draw a column of points for each client, with a line from the model as received to the trained one."""
    places = np.arange(len(values))
    end = trained_end(values)
    if end in values:
        low, high = values["personalised"], values[end]
        axes.vlines(places, low, high, color="#BBBBBB", linewidth=1.5, zorder=1)
    for model in values:
        marker, colour, inside, size = POINTS[str(model)]
        label = MODELS[str(model)]
        # The dash of the global model is drawn over the ring of a client that receives just that model.
        order = 3 if model == "global" else 2
        axes.plot(places, values[model], marker, c=colour, mfc=inside, ms=size, label=label, zorder=order)
    few = len(values) <= MANY_CLIENTS
    axes.set_xticks(places if few else [], [str(int(client)) for client in values.index] if few else [])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("client")
