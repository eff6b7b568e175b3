"""What a run has spent up to a round, in bytes, training passes or seconds, and its accuracy at that cost."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from fedsim.results.result import Result
from fedsim.training.metrics import metric_of

BYTES, PASSES = "bytes", "passes"
COSTS = (BYTES, PASSES)


def spent(result: Result, what: str) -> pd.Series:
    """Return what all clients together have spent up to each round, the evaluated one included.

    Parameters
    ----------
    what
        ``up``, ``down`` or ``bytes``; ``seconds`` of wall time; ``simulated`` seconds of ``[faults]``; or ``passes``: a
        third of the examples passed forward plus two thirds of those passed backward in local training, as going back
        through all layers costs about twice as much as going forward. For plain training of all layers that is the
        number of examples trained on.

    Returns
    -------
    spent
        Cost by round, from round 1; NaN if the run has no records of it.
    """
    rounds = pd.RangeIndex(1, result.evaluated + 1, name="round")
    match what:
        case "seconds":
            # A kill between a checkpoint and its timing loses that round's time, and so the sum from there on.
            return _rows_of(result.timing).reindex(rounds).cumsum(skipna=False)
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


def least_total(results: Iterable[Result], what: str) -> float | None:
    """Return the smallest total of the runs that spend anything; None if none does."""
    totals = [float(spent(result, what).iloc[-1]) for result in results]
    return min((total for total in totals if total > 0), default=None)


def value_within(result: Result, what: str, budget: float, metric: str = "accuracy") -> float:
    """Return the clients' mean on their own test data in the last evaluated round within a budget.

    Returns
    -------
    value
        Mean of the personalised models; NaN if the first evaluated round exceeds the budget.
    """
    values = result.mean_by_round(metric=metric)
    paid = values[(spent(result, what).reindex(values.index) <= budget).to_numpy()]
    return float(paid.iloc[-1]) if len(paid) else float("nan")


def spent_until(result: Result, what: str, target: float, metric: str = "accuracy") -> float:
    """Return what is spent when the clients' mean on their test data first reaches a target; NaN if it never does."""
    values = result.mean_by_round(metric=metric)
    reached = values[values >= target] if metric_of(result.meant(metric)).higher_is_better else values[values <= target]
    return float(spent(result, what).loc[reached.index[0]]) if len(reached) else float("nan")
