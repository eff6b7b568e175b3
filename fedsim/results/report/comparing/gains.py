"""Two methods compared client by client, in runs of the same partition and seed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.results.report.comparing.statistics import Interval, interval, paired_p
from fedsim.results.result import Result

Values = Callable[[Result], pd.Series]  # of the clients, by their index
NAN = float("nan")
SAME = 1e-9  # of the larger value: less is a matter of rounding


@dataclass(frozen=True)
class Gain:
    """The gain of runs over those that they are paired with.

    Parameters
    ----------
    difference
        Mean over the clients minus that of the other runs, over the seeds.
    own, other
        Means of both over the same seeds and clients; their difference is that of ``difference``.
    better, equal, worse
        Numbers of clients, over all seeds.
    seeds
        Number of seeds with a pair.
    p
        P-value of a paired t-test over the seeds, uncorrected; NaN with one seed.
    """

    difference: Interval
    own: float = NAN
    other: float = NAN
    better: int = 0
    equal: int = 0
    worse: int = 0
    seeds: int = 0
    p: float = NAN


def gain_of(pairs: Iterable[tuple[Result, Result]], values: Values, *, higher_is_better: bool = True) -> Gain:
    """Compare runs with others, client by client; runs of one seed count as one.

    Parameters
    ----------
    pairs
        A run and the one that it is compared with.
    """
    missing = 0
    by_seed = dict[int, list[tuple[np.ndarray, np.ndarray]]]()
    for result, partner in pairs:
        first, second = _of_same_clients(values(result), values(partner))
        is_known = ~(np.isnan(first) | np.isnan(second))
        missing += int((~is_known).sum())
        if is_known.any():
            by_seed.setdefault(result.config.seed, []).append((first[is_known], second[is_known]))
    if not by_seed:
        return Gain(Interval(NAN, missing=missing))
    means = [float(np.mean([(own - other).mean() for own, other in pairs])) for pairs in by_seed.values()]
    own, other = (_mean(by_seed.values(), side) for side in (0, 1))
    every = [pair for pairs in by_seed.values() for pair in pairs]
    first, second = (np.concatenate([pair[side] for pair in every]) for side in (0, 1))
    equal = np.isclose(first, second, rtol=SAME, atol=0)
    is_better = ~equal & ((first > second) == higher_is_better)
    found = interval(means)
    return Gain(
        difference=Interval(found.mean, found.half_width, missing),
        own=own,
        other=other,
        better=int(is_better.sum()),
        equal=int(equal.sum()),
        worse=int((~equal & ~is_better).sum()),
        seeds=len(means),
        p=paired_p(means),
    )


def _of_same_clients(one: pd.Series, other: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of the clients that both have."""
    if not one.index.equals(other.index):
        one, other = one.align(other, join="inner")
    return one.to_numpy(dtype=float, na_value=NAN), other.to_numpy(dtype=float, na_value=NAN)


def _mean(by_seed: Iterable[list[tuple[np.ndarray, np.ndarray]]], side: int) -> float:
    return float(np.mean([np.mean([pair[side].mean() for pair in pairs]) for pairs in by_seed]))
