"""Numbers of examples in records that count targets: of several labels, numbers or tokens for each example."""

import numpy as np
import pandas as pd

from fedsim.results.result import Result

PARTS = (("uploaded", "train"), ("personalised", "validation"), ("personalised", "test"))


def targets_per_example(result: Result) -> int | None:
    """Return how many targets the records count for each example; None if that differs by example, as in sequences.

    It is what all that a client has trained, validated and tested on has of its examples, where that is the same whole
    number for each client that reported all of it.
    """
    return result.remembered("targets per example", lambda: _targets_per_example(result))


def _targets_per_example(result: Result) -> int | None:
    sizes = pd.Series(np.asarray(result.heterogeneity.sizes, dtype=float))
    counted = [_last_counts(result, model, split) for model, split in PARTS]
    known = [each for each in counted if each is not None]
    if counted[0] is not None and counted[2] is not None:
        # A client that did not train in a round, or has another part nowhere, has no whole number.
        totals = pd.concat(known, axis=1).dropna().sum(axis=1)
        ratios = (totals / sizes.reindex(totals.index)).unique()
        if len(ratios) == 1 and ratios[0] >= 1 and float(ratios[0]).is_integer():
            return int(ratios[0])
    is_several = bool((result.heterogeneity.counts.totals > result.heterogeneity.sizes).any())
    return None if is_several else 1


def _last_counts(result: Result, model: str, split: str) -> pd.Series | None:
    """Return the last number of each client in a part of its data; None if there is none."""
    rows = result.of(model, "loss", split)
    if "n" not in rows or rows["n"].dropna().empty:
        return None
    counts = rows.dropna(subset=["n"]).groupby("client")["n"].max().astype(float)
    return counts.set_axis(counts.index.astype(int))
