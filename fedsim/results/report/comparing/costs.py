"""What a run has spent up to a round, in bytes, training passes or seconds, and its accuracy at that cost."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedsim.results.report.comparing.validated import check_validated
from fedsim.results.result import Result
from fedsim.training.metrics import metric_of

BYTES, PASSES, ROUNDS, SECONDS = "bytes", "passes", "rounds", "seconds"
COSTS = (BYTES, PASSES)
FREE = {BYTES: "sends nothing", PASSES: "trains nothing"}  # how a method without that cost is described
SMOOTH = 3  # evaluations in the running mean that a target is compared with
ROUNDING = 1e-9  # of a budget, which may be a sum of thirds, and of a target, which means may reach exactly


def spent(result: Result, what: str) -> pd.Series:
    """Return what all clients together have spent up to each round, the evaluated one included.

    Parameters
    ----------
    what
        ``up``, ``down`` or ``bytes``; ``seconds`` of wall time; ``simulated`` seconds of ``[faults]``; or ``passes``: a
        third of the examples passed forward plus two thirds of those passed backward in local training, as going back
        through all layers costs about twice as much as going forward. For plain training of all layers that is the
        number of examples trained on; or ``rounds``.

    Returns
    -------
    spent
        Cost by round, from round 1; NaN if the run has no records of it.
    """
    return result.remembered(("spent", what), lambda: _spent(result, what)).copy()


def _spent(result: Result, what: str) -> pd.Series:
    rounds = pd.RangeIndex(1, result.evaluated + 1, name="round")
    match what:
        case "seconds":
            # A kill between a checkpoint and its timing loses that round's time, and so the sum from there on.
            return _rows_of(result.timing).reindex(rounds).cumsum(skipna=False)
        case "rounds":
            return pd.Series(rounds, index=rounds, dtype=float)
        case "simulated":
            each = result.simulated_seconds
        case "passes":
            forward, backward = (_examples(result, direction) for direction in ("forward", "backward"))
            if forward.empty or backward.empty:
                return pd.Series(np.nan, index=rounds)
            each = (forward.reindex(rounds, fill_value=0) + 2 * backward.reindex(rounds, fill_value=0)) / 3
        case _:
            each = _rows_of(result.communication, ["up", "down"] if what == BYTES else [what])
    return each.reindex(rounds, fill_value=0).cumsum()


def untimed(result: Result) -> list[int]:
    """Return the rounds up to the evaluated one whose time is not known, as a kill came before it was written."""
    known = set(result.timing.get("round", ()))
    return [server_round for server_round in range(1, result.evaluated + 1) if server_round not in known]


def _rows_of(table: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.Series:
    if table.empty:
        return pd.Series(dtype=float)
    by_round = table.groupby("round")
    sums = by_round[list(columns)].sum() if columns else by_round.sum(numeric_only=True)
    return sums.sum(axis=1)


def _examples(result: Result, direction: str) -> pd.Series:
    return result.of("uploaded", f"{direction}_examples", "train").groupby("round")["value"].sum()


def least_totals(results: Iterable[Result], what: str) -> dict[str, float]:
    """Return, by the partition's name, the smallest total of its runs that spend anything."""
    least: dict[str, float] = {}
    for result in results:
        total = float(spent(result, what).iloc[-1])
        if total > 0:
            least[result.partition_name] = min(total, least.get(result.partition_name, total))
    return least


class Read(NamedTuple):
    """A number read off a run's curve, and whether it lies between two evaluated rounds."""

    value: float
    interpolated: bool = False


NOTHING = Read(float("nan"))


def value_within(result: Result, what: str, budget: float, metric: str = "accuracy") -> Read:
    """Return the clients' mean on their own test data when a run has spent a budget.

    Between two evaluated rounds it is interpolated linearly in the cost.

    Returns
    -------
    read
        Mean of the personalised models; that of the last round if the run spends less. NaN if the first evaluated round
        exceeds the budget, or a client's value is missing.
    """
    values = result.mean_by_round(metric=metric)
    costs = spent(result, what).reindex(values.index).to_numpy(dtype=float)
    paid = np.flatnonzero(costs <= budget * (1 + ROUNDING))
    if not len(paid):
        return NOTHING
    last = paid[-1]
    here = Read(float(values.iloc[last]))
    if last + 1 == len(values) or costs[last] >= budget * (1 - ROUNDING):
        return here
    share = (budget - costs[last]) / (costs[last + 1] - costs[last])
    return Read(_between(here.value, float(values.iloc[last + 1]), share), interpolated=True)


def smoothed(values: pd.Series, evaluations: int) -> pd.Series:
    """Return at each evaluated round the mean of its value and of those before it, at most ``evaluations`` in all.

    It is NaN where one of them is.
    """
    return pd.Series(
        [values.iloc[max(0, end - evaluations) : end].mean(skipna=False) for end in range(1, len(values) + 1)],
        index=values.index,
        dtype=float,
    )


def spent_until(result: Result, what: str, target: float, metric: str = "accuracy", evaluations: int = SMOOTH) -> Read:
    """Return what is spent until the clients' smoothed mean on their validation data reaches a target.

    Between two evaluated rounds the cost is interpolated linearly in the value, as in McMahan et al. (arXiv
    1602.05629). They take the best test accuracy so far, which one lucky round raises for good; a running mean needs
    as many good evaluations as it is wide, and comes later by half its width for all methods alike.

    Returns
    -------
    read
        NaN if the target is never reached.

    Raises
    ------
    ConfigError
        If it has no values on validation data.
    """
    check_target([result], metric)
    values = smoothed(result.mean_by_round(metric=metric, split="validation"), evaluations)
    is_higher = metric_of(result.meant(metric)).higher_is_better
    room = ROUNDING * target
    reached = np.flatnonzero((values >= target - room) if is_higher else (values <= target + room))
    if not len(reached):
        return NOTHING
    first = reached[0]
    costs = spent(result, what).reindex(values.index).to_numpy(dtype=float)
    here, before = float(values.iloc[first]), float(values.iloc[first - 1]) if first else float("nan")
    if math.isnan(before) or math.isclose(here, target, rel_tol=ROUNDING) or costs[first - 1] == costs[first]:
        return Read(float(costs[first]))
    share = (target - before) / (here - before)
    return Read(_between(float(costs[first - 1]), float(costs[first]), share), interpolated=True)


def check_target(results: Sequence[Result], metric: str) -> None:
    """Check that it can be known when runs reach a target.

    Raises
    ------
    ConfigError
        If some have no values on validation data.
    """
    check_validated(results, metric, "by which a target is reached", "--target")


def _between(start: float, end: float, share: float) -> float:
    return start + share * (end - start)
