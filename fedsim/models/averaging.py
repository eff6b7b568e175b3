"""The weighted mean of models, block by block, so that each model is read from memory once.

Both forms compute the running mean ``mean += w_i / (w_1 + ... + w_i) * (x_i - mean)`` in the order given: equal models
are a fixed point in every precision, and the result does not depend on blocks, groups or threads.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.models.blocks import for_each_block
from fedsim.models.params import Params, empty_flat, moves

GROUP = 8  # members that `WeightedMean` waits for before it folds them into the mean


def _fold_(mean: Tensor, members: Sequence[Tensor], workspace: Tensor, fractions: Sequence[float]) -> None:
    """Move a running mean towards each member, by its fraction of all weights up to its own."""
    converted = workspace[1, : mean.numel()].view(mean.shape)
    for member, fraction in zip(members, fractions, strict=True):
        if fraction == 1:  # the first one: there is no mean yet
            mean.copy_(member)
        else:
            mean.lerp_(member if member.dtype == mean.dtype else converted.copy_(member), fraction)


def weighted_mean(members: Sequence[Params], weights: Sequence[float], dtype: torch.dtype = torch.float64) -> Params:
    """Return the weighted mean of the floating-point entries, accumulated in the order given.

    Parameters
    ----------
    members
        At least one model, all with the same keys, shapes and dtypes; fastest if all are flat
        (`fedsim.models.params.flat_copy`). Integer entries never enter an average: they are left out of the result.
    weights
        One positive number per member; they need not sum to 1.
    dtype
        Type to accumulate in, unless an entry's own is wider: float64, or float32 to be faster.

    Returns
    -------
    Params
        A flat model in the dtypes of the members.

    Raises
    ------
    ValueError
        If there is no member, the weights do not match the members, or a shape differs from the first member's.
    """
    _check_members(members, weights)
    total, fractions = 0.0, []
    for weight in weights:
        _check_weight(weight)
        total += weight
        fractions.append(weight / total)
    mean = empty_flat(_floating(members[0]))
    entries = [_entries(member, mean) for member in members]
    for_each_block(partial(_average_, fractions=fractions), dtype, [mean, *entries])
    return mean


def mean_of_present(members: Sequence[Params], weights: Sequence[float], dtype: torch.dtype = torch.float64) -> Params:
    """Return the weighted mean of each floating-point entry over the members that have it.

    Parameters
    ----------
    members
        At least one model, or part of one.
    weights, dtype
        As in `weighted_mean`.

    Returns
    -------
    Params
        Entries in the members' order, starting with the first member's.

    Raises
    ------
    ValueError
        As `weighted_mean` does.
    """
    _check_members(members, weights)
    keys = list(dict.fromkeys(key for member in members for key in member))
    together: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        together.setdefault(tuple(place for place, member in enumerate(members) if key in member), []).append(key)
    means: Params = {}
    for places, part in together.items():
        parts = [{key: members[place][key] for key in part} for place in places]
        means |= weighted_mean(parts, [weights[place] for place in places], dtype)
    return {key: means[key] for key in keys if key in means}


def mean_of_sent(mean: Params, sent: Sequence[Params], weights: Sequence[float], otherwise: Params) -> Params:
    """Return a mean in which entries that were not sent came as 0, as that over the members that sent them.

    Parameters
    ----------
    sent
        Which entries each member sent, 1 or 0 as float64, of the tensors of which some may be left out.
    otherwise
        Values of entries that nobody sent.
    """
    parts = weighted_mean(sent, weights)
    return mean | {key: torch.where(part > 0, mean[key] / part, otherwise[key]) for key, part in parts.items()}


class WeightedMean:
    """The same mean, bit by bit, of members that arrive one after the other.

    It holds an accumulator, the result, and at most 8 members that wait to be folded into the mean.

    Parameters
    ----------
    dtype
        As in `weighted_mean`.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self._dtype = dtype
        self._total = 0.0
        self._dtypes: Mapping[str, torch.dtype] = {}
        self._accumulator: Params = {}
        self._group: list[Params] = []
        self._fractions: list[float] = []

    def add(self, member: Params, weight: float) -> None:
        """Include a member in the mean; it must not change afterwards, since it may wait for others.

        Raises
        ------
        ValueError
            If the weight is not positive, or a shape differs from the first member's.
        """
        _check_weight(weight)
        if not self._total:
            self._dtypes = {key: value.dtype for key, value in _floating(member).items()}
            wide = {key: torch.promote_types(dtype, self._dtype) for key, dtype in self._dtypes.items()}
            self._accumulator = empty_flat(_floating(member), wide)
        self._group.append(_entries(member, self._accumulator))
        self._total += weight
        self._fractions.append(weight / self._total)
        if len(self._group) == GROUP:
            self._fold()

    def result(self) -> Params:
        """Return the mean of all members so far; more may follow.

        Raises
        ------
        ValueError
            If there is no member.
        """
        if not self._total:
            raise ValueError("there is no member to average; add one before asking for the result")
        self._fold()
        mean = empty_flat(self._accumulator, self._dtypes)
        for_each_block(partial(_fold_, fractions=[1.0]), self._dtype, [mean, self._accumulator])
        return mean

    def _fold(self) -> None:
        if self._group:
            fold = partial(_fold_, fractions=self._fractions)
            for_each_block(fold, self._dtype, [self._accumulator, *self._group])
            self._group, self._fractions = [], []


def _average_(mean: Tensor, members: Sequence[Tensor], workspace: Tensor, fractions: Sequence[float]) -> None:
    if torch.promote_types(mean.dtype, workspace.dtype) == mean.dtype:
        _fold_(mean, members, workspace, fractions)
    else:
        accumulator = workspace[0, : mean.numel()].view(mean.shape)
        _fold_(accumulator, members, workspace, fractions)
        mean.copy_(accumulator)


def _floating(member: Params) -> Params:
    return {key: value for key, value in member.items() if moves(value)}


def _entries(member: Params, like: Params) -> Params:
    """Return the entries that another model also has, in its order."""
    for key, value in like.items():
        if member[key].shape != value.shape:
            shapes = f"{tuple(member[key].shape)}, the first member's {tuple(value.shape)}"
            raise ValueError(f"{key} of a member has the shape {shapes}; all shapes must be equal")
    return {key: member[key] for key in like}


def _check_members(members: Sequence[Params], weights: Sequence[float]) -> None:
    if not members or len(members) != len(weights):
        raise ValueError(
            f"{len(weights)} weights for {len(members)} members; give one weight per member, and at least one member"
        )


def _check_weight(weight: float) -> None:
    if not 0 < weight < float("inf"):
        raise ValueError(f"one of the weights is {weight}; each must be positive and finite")
