"""Runs that were stopped before their last round, and records up to a round that several runs have."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from fedsim.results.result import Result


def is_finished(result: Result) -> bool:
    """Return whether a run has ended: all its rounds have run, or it was stopped early by its own rule."""
    return result.folder.done.exists() or result.evaluated >= result.config.rounds


def state_of(result: Result) -> str:
    """Return the name of a run's folder with how far it came, such as ``1b61bb63-s0 (round 5 of 30)``."""
    return f"{result.folder.path.name} (round {result.evaluated} of {result.config.rounds})"


def common_round(results: Sequence[Result]) -> int | None:
    """Return the last round that all runs have evaluated; None if there is none.

    A finished run with fewer rounds than any unfinished one has nothing to wait for: it is taken as it ended.
    """
    limit = min((result.evaluated for result in results if not is_finished(result)), default=None)
    if limit is None:
        return max(result.evaluated for result in results)
    reaching = [result for result in results if result.evaluated >= limit]
    rounds = [{*map(int, result.of("personalised")["round"])} for result in reaching]
    return max((each for each in set.intersection(*rounds) if each <= limit), default=None)


def until(result: Result, server_round: int) -> Result:
    """Return a run with its records up to a round."""

    def cut(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["round"] <= server_round] if "round" in table else table

    shorter = replace(
        result,
        metrics=cut(result.metrics),
        communication=cut(result.communication),
        timing=cut(result.timing),
        barriers=cut(result.barriers),
    )
    for name in ("faults", "variances"):  # which are read from the folder, and cached
        vars(shorter)[name] = cut(getattr(result, name))
    return shorter
