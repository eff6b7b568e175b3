"""Accuracy of all models that were evaluated, by client and data."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.results.report.comparing.statistics import jain, worst_mean
from fedsim.results.report.comparing.tables import UNKNOWN, Table
from fedsim.results.report.comparing.units import format_missing
from fedsim.results.report.drawing.style import STYLE, WIDTH, legend_outside, metric_axis
from fedsim.results.report.pages import how_to_read
from fedsim.results.report.pages.section import Section
from fedsim.results.report.palette import COLOURS
from fedsim.results.result import Result
from fedsim.training.metrics import label, metric_of

MODELS = {
    "global": "global",
    "personalised": "as received",
    "trained": "after local training",
    "fine-tuned": "after fine-tuning",
}
DATA = {"test": "own test data", "server": "server's test data", "unseen": "own test data of unseen clients"}
TITLES = {"test": "Own test data", "server": "Server's test data", "unseen": "Unseen clients"}
NOTE = (
    "As received: each client's own model with the layers that it next takes from the server; "
    "after local training: models of the round's participants before averaging; after fine-tuning: models as received, "
    "fine-tuned and then discarded. Mean ± standard deviation over the clients; worst 10 %: mean over the worst tenth "
    "of the clients, rounded up; Jain: Jain's fairness index, 1 if all clients have the same value. -: not measured "
    "in that round, or undefined."
)
# For each model in the figure: marker, colour, fill and size. The model as received is a ring around the others.
POINTS = {
    "global": ("_", "#555555", "#555555", 7),
    "personalised": ("o", COLOURS[0], "white", 9),
    "trained": ("^", COLOURS[2], COLOURS[2], 5),
    "fine-tuned": ("o", COLOURS[1], COLOURS[1], 5),
}
MANY_CLIENTS = 40  # more are drawn without their numbers


def evaluation_sections(result: Result) -> list[Section]:
    """Return the figure of each client's accuracy before and after training; none if it was not measured."""
    if not _panels(result):
        return []
    name = label(result.main, capital=True)
    text = (
        f"{name} of each client after round {result.evaluated}, sorted by that of the model as received. A grey line "
        "connects it with the model after training on the client's own data."
    )
    return [
        Section(
            "evaluation",
            f"{name} before and after training on each client",
            text,
            partial(before_and_after, result),
            how_to_read=how_to_read.OF["evaluation"],
        )
    ]


def evaluation_note(result: Result) -> str:
    """Explain the numbers of `evaluation_table`."""
    best, is_share = result.best_round(), metric_of(result.main).unit == "share"
    note = f"{label(result.main, capital=True)}{' in percent' if is_share else ''}. {NOTE}"
    if best is None:
        return f"{note} Without validation data, there is no best round."
    also = ", and the last one" if best == result.evaluated else ""
    return f"{note} Best round: {best}{also}, by the mean {label(result.main)} on the clients' validation data."


def evaluation_table(result: Result) -> Table:
    """Return accuracies by model and data, for the best round by validation data and for the last one."""
    rounds = _rounds(result)
    headings = ["model", "on", "clients"]
    for name, server_round in rounds.items():
        headings += [f"{name} round ({server_round})", "worst 10 %", "Jain"]
    rows = []
    for model, data, of_server in _measured(result):
        values = [_values(result, model, data, server_round, of_server) for server_round in rounds.values()]
        count = UNKNOWN if of_server else str(max(map(len, values)))
        rows.append(
            (
                MODELS[model],
                DATA.get(data, f"server's test data, {data}"),
                count,
                *(cell for each in values for cell in _cells(each, result.main, of_server)),
            )
        )
    return Table(tuple(headings), (False, False, *[True] * (len(headings) - 2)), tuple(rows))


def before_and_after(result: Result) -> Figure:
    """Draw each client's accuracy before and after training on its own data."""
    panels = _panels(result)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
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


def _rounds(result: Result) -> Mapping[str, int]:
    """Return the rounds that are shown, by their names."""
    best, last = result.best_round(), result.evaluated
    return {"last": last} if best in (None, last) else {"best": int(best or 0), "last": last}


def _measured(result: Result) -> Iterator[tuple[str, str, bool]]:
    """Yield each model, what it was measured on, and whether by the server, perturbed or not."""
    accuracies = result.metrics[result.metrics["metric"] == result.main]
    found = set(zip(accuracies["model"], accuracies["split"], accuracies["client"].isna(), strict=True))
    for model in MODELS:
        for data in DATA:
            if (model, data, False) in found:
                yield model, data, False
            elif data == "server" and (model, "test", True) in found:
                yield model, data, True
        yield from (
            (model, split, True) for split in result.config.evaluation.perturbed if (model, split, True) in found
        )


def _values(result: Result, model: str, data: str, server_round: int, of_server: bool) -> pd.Series:
    split = "test" if of_server and data == "server" else data
    rows = result.of(model, split=split, server=of_server)
    return rows[rows["round"] == server_round].set_index("client")["value"].astype(float).sort_index()


def _cells(values: pd.Series, metric: str, of_server: bool) -> tuple[str, str, str]:
    """Return mean and spread, the worst tenth, and fairness, over the clients that have a value; how many have none."""
    numbers = values.dropna().to_numpy()
    missing = format_missing(len(values) - len(numbers))
    if not len(numbers):
        return f"{UNKNOWN}{missing}", UNKNOWN, UNKNOWN
    is_share, is_higher = metric_of(metric).unit == "share", metric_of(metric).higher_is_better

    def write(value: float) -> str:
        return f"{100 * value:.1f}" if is_share else f"{value:.4g}"

    if of_server:
        return write(numbers[0]), UNKNOWN, UNKNOWN
    fairness = jain(numbers)
    return (
        f"{write(numbers.mean())} ± {write(numbers.std())}{missing}",
        f"{write(worst_mean(numbers, higher_is_better=is_higher))}{missing}",
        UNKNOWN if np.isnan(fairness) else f"{fairness:.3f}{missing}",
    )


def _panels(result: Result) -> dict[str, pd.DataFrame]:
    """Return accuracy by client (rows) and model (columns) for all data on which more was measured than by default."""
    panels = {}
    for data in DATA:
        columns = {model: _values(result, model, data, result.evaluated, of_server=False) for model in MODELS}
        values = pd.DataFrame({model: column for model, column in columns.items() if len(column)})
        if "personalised" in values and (data == "unseen" or {"trained", "fine-tuned"} & set(values)):
            panels[data] = values.sort_values("personalised", kind="stable")
    return panels if any({"trained", "fine-tuned"} & set(values) for values in panels.values()) else {}


def _draw_points(axes: Axes, values: pd.DataFrame) -> None:
    """Draw a column of points for each client, with a line from the model as received to the trained one."""
    places = np.arange(len(values))
    end = "fine-tuned" if "fine-tuned" in values else "trained"
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
