"""Who takes part: functions of the seed, which no strategy and no history can change."""

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from fedsim import seeds


def draw_unseen(seed: int, clients: int, unseen: float) -> list[int]:
    """Return the clients that never take part in training, in ascending order: a function of the seed.

    Raises
    ------
    ValueError
        If no client is left to train.
    """
    if not unseen:
        return []
    count = max(1, round(unseen * clients))
    if count >= clients:
        raise ValueError(f"unseen = {unseen} of {clients} clients must leave one to train; use a smaller share")
    return _choose(seeds.rng(seed, "unseen"), range(clients), count)


def draw_participants(
    seed: int, server_round: int, clients: int, participation: float, unseen: float = 0.0
) -> list[int]:
    """Return the clients of a round in ascending order: a function of seed and round, not of history.

    Parameters
    ----------
    participation
        Share of the clients that are not unseen.
    unseen
        Share of all clients, which never take part.

    Raises
    ------
    ValueError
        If no client is left to train.
    """
    seen = _others(clients, draw_unseen(seed, clients, unseen))
    count = max(1, round(participation * len(seen)))
    if count == len(seen):
        return list(seen)
    return _choose(seeds.rng(seed, "participation", server_round), seen, count)


@lru_cache(maxsize=16)
def drawn_participants(
    seed: int, server_round: int, clients: int, participation: float, unseen: float
) -> tuple[int, ...]:
    """Return what `draw_participants` does; the last rounds that were asked for are remembered."""
    return tuple(draw_participants(seed, server_round, clients, participation, unseen))


def draw_evaluated(seed: int, clients: int, limit: int | None, unseen: float = 0.0) -> list[int]:
    """Return the clients that are evaluated, in ascending order: all, or ``limit`` seen and ``limit`` unseen ones."""
    never = draw_unseen(seed, clients, unseen)
    chosen: list[int] = []
    for stream, group in (("evaluated clients", _others(clients, never)), ("evaluated unseen clients", never)):
        count = len(group) if limit is None else min(limit, len(group))
        chosen += group if count == len(group) else _choose(seeds.rng(seed, stream), group, count)
    return sorted(chosen)


def _others(clients: int, unseen: Collection[int]) -> Sequence[int]:
    return np.setdiff1d(np.arange(clients), list(unseen)).tolist() if unseen else range(clients)


def _choose(rng: np.random.Generator, clients: Sequence[int], count: int) -> list[int]:
    return sorted(clients[int(place)] for place in rng.choice(len(clients), size=count, replace=False))
