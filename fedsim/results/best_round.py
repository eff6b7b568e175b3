"""Early stopping, and the best round: by validation data, never by test data."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedsim.config import StopConfig
from fedsim.training.metrics import LOSS, MAIN, meant, metric_of


def selecting(measured: Iterable[str]) -> tuple[str, str]:
    """Return the metrics by which there is a best round whose models are kept, of those that were measured."""
    return meant(MAIN, measured), LOSS


def validation_means(rows: Iterable[Mapping[Any, Any]], metric: str) -> dict[int, float]:
    """Return the clients' mean validation value of their personalised models by round.

    Parameters
    ----------
    rows
        Rows of ``metrics.jsonl``, in their order.

    Returns
    -------
    means
        Means by round, NaN where a client's value is not finite. All clients have the same weight.
    """
    values: dict[int, list[float]] = {}
    for row in rows:
        if (row["model"], row["split"], row["metric"]) == ("personalised", "validation", metric):
            value = row["value"]
            values.setdefault(int(row["round"]), []).append(math.nan if value is None else value)
    return {server_round: math.fsum(each) / len(each) for server_round, each in values.items()}


def best_round(means: Mapping[int, float], metric: str) -> int | None:
    """Return the first round with the best value, such as the highest accuracy or the lowest loss; None without one."""
    sign = 1 if metric_of(metric).higher_is_better else -1
    known = {server_round: sign * value for server_round, value in means.items() if not math.isnan(value)}
    return max(known, key=lambda server_round: (known[server_round], -server_round), default=None)


def best_rounds(means: Mapping[str, Mapping[int, float]]) -> set[int]:
    """Return the best rounds of means by metric, of those that have one."""
    best = (best_round(of_metric, metric) for metric, of_metric in means.items())
    return {server_round for server_round in best if server_round is not None}


def reason_to_stop(means: Mapping[int, float], settings: StopConfig, metric: str | None = None) -> str | None:
    """Return why a run should end after the last of these rounds, or None if it should continue.

    Parameters
    ----------
    means
        Means of all evaluations so far, by round.
    metric
        The metric of the means, if it is not the one that ``[stop]`` names.
    """
    metric = settings.metric if metric is None else metric
    if settings.target is not None:
        sign = 1 if metric_of(metric).higher_is_better else -1
        if reached := [each for each, mean in means.items() if sign * mean >= sign * settings.target]:
            found = f"was {means[reached[0]]:.4f} in round {reached[0]}"
            return f"the clients' mean validation {metric} {found} (stop.target = {settings.target:g})"
    if not settings.patience or not means:
        return None
    best = best_round(means, metric)
    since = sum(server_round > (best or 0) for server_round in means)
    if since < settings.patience:
        return None
    found = "was no number in" if best is None else f"was not better than the {means[best]:.4f} of round {best} in"
    evaluations = "evaluation" if since == 1 else "evaluations"
    return f"the clients' mean validation {metric} {found} {since} {evaluations} (stop.patience)"
