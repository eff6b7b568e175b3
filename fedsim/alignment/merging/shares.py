"""The share of each member in a merged model."""

from collections.abc import Sequence

from fedsim.models.params import Params


def shares_of(members: Sequence[Params], weights: Sequence[float] | None) -> list[float]:
    """Return positive weights divided by their sum; by default all are equal.

    Raises
    ------
    ValueError
        If there is not one positive finite weight for each member.
    """
    given = [1.0] * len(members) if weights is None else list(weights)
    if len(given) != len(members) or not all(0 < weight < float("inf") for weight in given):
        raise ValueError(f"weights = {given} for {len(members)} members; give each one positive finite number")
    return [weight / sum(given) for weight in given]
