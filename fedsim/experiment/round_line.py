"""A round in one line of the log: what was measured, and how long its parts took."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.training.metrics import format_metric, is_selecting, mean_of_known

Row = Mapping[str, Any]


def describe_round(server_round: int, rounds: int, rows: Sequence[Row], seconds: Mapping[str, float]) -> str:
    """Return the metrics of a round, of clients as means, and its seconds.

    Parameters
    ----------
    rows
        Lines of ``metrics.jsonl``.
    seconds
        By part of the round.
    """
    spent = ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
    return "; ".join([f"round {server_round} of {rounds} done", *_means(rows), spent])


def _means(rows: Sequence[Row]) -> Iterator[str]:
    values: dict[tuple[str, str, bool], dict[str, list[float | None]]] = {}
    for row in rows:
        if is_selecting(row["metric"]):
            of = values.setdefault((row["model"], row["split"], row["client"] is None), {})
            of.setdefault(row["metric"], []).append(row["value"])
    for (model, split, on_server), metrics in values.items():
        where = "server" if on_server else "clients"
        yield f"{model}, {split}, {where}: " + ", ".join(_mean(name, found) for name, found in metrics.items())


def _mean(name: str, values: Sequence[float | None]) -> str:
    mean, missing = mean_of_known(values)
    shown = "-" if math.isnan(mean) else format_metric(name, mean)
    return f"{name} {shown}{f' ({missing} missing)' if missing else ''}"
