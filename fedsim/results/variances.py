"""What the variances of averaged weights say: whether models were averaged that have little in common."""

import pandas as pd

ALARM = 0.5  # averages of models with a common start keep nearly all of the variance


def describe_variances(rows: pd.DataFrame) -> list[str]:
    """Return a text if a layer of the global model has lost much of its clients' variance in some round.

    Parameters
    ----------
    rows
        Columns ``round, layer, ratio``, as in `fedsim.results.result.Result`.
    """
    low = rows[rows["ratio"].astype(float) < ALARM]
    if low.empty:
        return []
    first = low[low["round"] == low["round"].min()]
    worst = first.loc[first["ratio"].astype(float).idxmin()]
    more = f" ({len(first)} layers less than half)" if len(first) > 1 else ""
    return [
        f"after round {worst['round']}, {worst['layer']} of the global model has {worst['ratio']:.0%} of the variance "
        f"of the clients' weights{more}, as averages of models with little in common do; matching their units may help "
        "(strategy matched_average, with repair = 'variance')"
    ]
