"""Descriptions of mixed models: which layer comes from which model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

from torch import nn

from fedsim.analysis.arguments import check_numbers
from fedsim.analysis.mixing.names import AVERAGE, PAIR_TS, Normalisation
from fedsim.models.layer_reading import owner_of
from fedsim.models.layers import Layers
from fedsim.models.norms import counter_keys
from fedsim.models.params import Params, is_equal, moves

Pair = tuple[int, int]
# What models are compared with: their average, one another, or these pairs (base, other), where other may be AVERAGE.
Against = Literal["average", "pairs"] | Sequence[Pair]
# Where the entries of a part come from: a state's index, or (start, end, t) for a mix of two.
Source = int | tuple[int, int, float]
# The sources of all parts of a model, in its order.
Recipe = tuple[Source, ...]


@dataclass(frozen=True)
class Mix:
    """Model ``base`` whose layers of a group are ``(1 - t) * base + t * other``; both are indices of states.

    ``has_codes`` says that the models differ in integers, of which the mixed model has the base's, as in `Part`.
    """

    group: str
    layers: frozenset[str]
    base: int
    other: int
    t: float
    has_codes: bool = False

    @property
    def source(self) -> Source:
        """The mix of whole models; equal ones have equal sources."""
        if self.has_codes and self.t > 0:
            return self.base, self.other, self.t
        return source_of(self.base, self.other, self.t)


@dataclass(frozen=True)
class Part:
    """Entries of a model that have one source: a layer, or the part of it that moves or stays.

    Parameters
    ----------
    layer
        Path of the module that owns them; what stays may be owned by one that is no layer.
    keys
        State-dict keys; a tied tensor has its first one only.
    moves
        Whether they are mixed with the layer; if not, they are always the base's.
    """

    layer: str
    keys: tuple[str, ...]
    moves: bool = True


def different_codes(model: nn.Module, states: Sequence[Params]) -> tuple[str, ...]:
    """Return the keys of integers, such as masks and indices, that states do not have in common; no counters."""
    first, counters = states[0], counter_keys(model)
    codes = [key for key, value in first.items() if not moves(value) and key not in counters]
    return tuple(key for key in codes if not all(is_equal(state[key], first[key]) for state in states))


def parts_of(layers: Layers, normalisation: Normalisation, codes: Sequence[str] = ()) -> tuple[Part, ...]:
    """Return a model's parts: its layers, with running statistics apart where these stay the base's.

    Parameters
    ----------
    codes
        Keys of entries that cannot be mixed and differ between models: they stay the base's too.
    """
    parts = [Part(owner_of(key), (key,), moves=False) for key in codes]
    for layer in layers:
        if normalisation == "base" and layer.statistics:
            parts.append(Part(layer.name, layer.parameters + layer.others))
            parts.append(Part(layer.name, layer.statistics, moves=False))
        else:
            parts.append(Part(layer.name, layer.keys + layer.others))
    return tuple(part for part in parts if part.keys)


def recipe_of(mix: Mix, parts: Sequence[Part], t: float | None = None) -> Recipe:
    """Return the source of each part, at another ``t`` if given; equal models have equal recipes."""
    mixed = source_of(mix.base, mix.other, mix.t if t is None else t)
    return tuple(mixed if part.moves and part.layer in mix.layers else mix.base for part in parts)


def source_of(base: int, other: int, t: float) -> Source:
    """Return ``(1 - t) * base + t * other`` as a source, in its unique form."""
    if t == 0 or base == other:
        return base
    if t == 1:
        return other
    # Rounded, so that 0.1 from one end is 0.9 from the other.
    return (base, other, round(t, 12)) if base < other else (other, base, round(1 - t, 12))


def list_mixes(
    groups: Mapping[str, Sequence[str]], states: int, against: Against, ts: Sequence[float] | None = None
) -> Iterator[Mix]:
    """List the mixed models of a measurement: for each group each base, partner and t.

    Parameters
    ----------
    ts
        By default 1 where models are only mixed with the average, else 0, 1/2 and 1.

    Raises
    ------
    ValueError
        If there is no state, or an argument is unknown or out of range.
    """
    ends = ends_of(against, states)
    if ts is None:
        ts = (1.0,) if ends and all(map(is_average, ends)) else PAIR_TS
    check_numbers("ts", ts)
    if any(not 0 <= t <= 1 for t in ts):
        raise ValueError(f"ts = {list(ts)}: each must be from 0 to 1")
    for group, layers in groups.items():
        for base, other in ends:
            for t in ts:
                yield Mix(group, frozenset(layers), base, other, float(t))


def ends_of(against: Against, states: int) -> list[Pair]:
    """Return the pairs (base, other) that are compared.

    Raises
    ------
    ValueError
        If there is no state, or ``against`` is unknown or names a state that is not there.
    """
    if isinstance(against, str) and against not in ("average", "pairs"):
        raise ValueError(f"against = {against!r} must be 'average' or 'pairs'")
    if states < 1:
        raise ValueError("there are no states; barriers need at least one model")
    if against == "average":
        return [(base, AVERAGE) for base in range(states)]
    if isinstance(against, str):
        return list(permutations(range(states), 2))
    _check_pairs(against, states, allowed=AVERAGE)
    return list(against)


def pairs_once(pairs: Sequence[Pair] | None, states: int) -> list[Pair]:
    """Return pairs of states, by default all, each once.

    Raises
    ------
    ValueError
        If a pair names a state that is not there.
    """
    if pairs is None:
        return list(combinations(range(states), 2))
    _check_pairs(pairs, states)
    return list(pairs)


def is_average(pair: Pair) -> bool:
    """Return whether a pair is a state and the average."""
    return pair[1] == AVERAGE


def halfway(ts: Sequence[float] | None) -> tuple[float, ...]:
    """Return the coefficients at which a model is neither of its ends, or 1/2 if there are none."""
    return tuple(t for t in ts or () if 0 < t < 1) or (0.5,)


def _check_pairs(pairs: Sequence[Pair], states: int, allowed: int = 0) -> None:
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise TypeError(f"pairs have {pair!r}; each must be (base, other), such as [(0, 1), (1, 0)]")
        base, other = pair
        if not 0 <= base < states or not (0 <= other < states or other == allowed):
            raise ValueError(
                f"pair {(base, other)} names a model that is not there; there are {states}, counted from 0"
            )
