"""Accuracy of all models that were evaluated, by client and data."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd

from fedsim.results.report.charts.before_after import before_after_chart
from fedsim.results.report.comparing.statistics import jain, worst_mean
from fedsim.results.report.comparing.tables import UNKNOWN, Table
from fedsim.results.report.comparing.units import format_missing
from fedsim.results.report.drawing.before_after import MODELS, before_and_after, models_by_client, values_by_client
from fedsim.results.report.pages import how_to_read
from fedsim.results.report.pages.section import Section
from fedsim.results.result import Result
from fedsim.training.metrics import label, metric_of

DATA = {"test": "own test data", "server": "server's test data", "unseen": "own test data of unseen clients"}
OVER_CLIENTS = "standard deviation over the clients"
NOTE = (
    "As received: each client's own model with the layers that it next takes from the server; "
    "after local training: models of the round's participants before averaging; after fine-tuning: models as received, "
    "fine-tuned and then discarded; with neighbours: models as received, mixed with the client's nearest training "
    f"examples. Mean ± {OVER_CLIENTS}; worst 10 %: mean over the worst tenth "
    "of the clients, rounded up; Jain: Jain's fairness index, 1 if all clients have the same value. -: not measured "
    "in that round, or undefined."
)


def evaluation_sections(result: Result) -> list[Section]:
    """Return the figure of each client's accuracy before and after training; none if it was not measured."""
    panels = models_by_client(result)
    if not panels:
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
            before_after_chart(panels, result.main, result.heterogeneity.origins),
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
        values = [values_by_client(result, model, data, server_round, of_server) for server_round in rounds.values()]
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
