"""Named parameters: a model, or a part of one, as a dict from state-dict keys to tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]


def state_of(model: nn.Module) -> Params:
    """Return a model's state dict in which a tensor with several names stands once, under its first.

    The tensors are those of the model, not copies.
    """
    first = first_keys(model)
    return {key: value for key, value in model.state_dict().items() if first[key] == key}


def load_state_(model: nn.Module, params: Params) -> None:
    """Put all entries of `state_of`, or of a whole state dict, into ``model``.

    Raises
    ------
    KeyError
        If an entry is missing.
    RuntimeError
        If a shape does not fit.
    """
    model.load_state_dict({key: params[first] for key, first in first_keys(model).items()})


def first_keys(model: nn.Module) -> dict[str, str]:
    """Return, for each key of the state dict, the first key of the same tensor: another one where it is tied."""
    seen: dict[int, str] = {}
    return {key: seen.setdefault(id(value), key) for key, value in model.state_dict(keep_vars=True).items()}


def combine(base: Params, part: Params) -> Params:
    """Return ``base`` with the entries of ``part`` put in the place of its own.

    Raises
    ------
    KeyError
        If ``part`` has an entry that ``base`` does not have.
    """
    if unknown := part.keys() - base.keys():
        raise KeyError(f"entries {sorted(unknown)} are not in the model that they should replace")
    return {key: part.get(key, value) for key, value in base.items()}


def lerp(start: Params, end: Params, t: float) -> Params:
    """Return ``(1 - t) * start + t * end``; exact at 0 and at 1; integer entries stay the start's."""
    return {key: (1 - t) * value + t * end[key] if value.is_floating_point() else value for key, value in start.items()}


def weighted_mean(members: Sequence[Params], weights: Sequence[float]) -> Params:
    """Return the weighted mean of the floating-point entries, summed in float64 in the order given.

    Parameters
    ----------
    members
        At least one, all with the same keys and shapes. Integer entries never enter an average:
        they are left out of the result.
    weights
        One positive number per member; they need not sum to 1.

    Raises
    ------
    ValueError
        If there is no member, or the weights do not fit the members.
    """
    if not members or len(members) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(members)} members; both must be the same and positive")
    if min(weights) <= 0:
        raise ValueError(f"weights are {list(weights)}; each must be positive")
    total = float(sum(weights))
    mean = {}
    for key, first in members[0].items():
        if first.is_floating_point():
            accumulator = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
            for member, weight in zip(members, weights, strict=True):
                accumulator.add_(member[key], alpha=weight / total)
            mean[key] = accumulator.to(first.dtype)
    return mean
