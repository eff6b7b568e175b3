"""Steps of the optimisers, by torch's functional forms: of one model, and of the members of a cohort."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedsim.models.params import Params, dense
from fedsim.training.learner import Learner
from fedsim.training.settings import LocalSettings

# What is kept of each parameter, by torch's names. SGD has one tensor, which is kept under the parameter's own name.
MOMENTUM, MEAN, SQUARE, LARGEST, COUNT = "", "exp_avg/", "exp_avg_sq/", "max_exp_avg_sq/", "step/"


def kept_by(settings: LocalSettings) -> tuple[str, ...]:
    """Return what the optimiser keeps of each parameter, as the beginnings of names in its state."""
    if settings.optimizer == "sgd":
        return (MOMENTUM,) if settings.momentum else ()
    return (MEAN, SQUARE, *((LARGEST,) if settings.amsgrad else ()), COUNT)


class Optimizer:
    """The optimiser of one phase.

    Parameters
    ----------
    state
        What it keeps of each parameter, by name; it is changed in place, and what is missing begins at zero.
    of
        Beginning of the names of what is trained: each model has its own state.
    """

    def __init__(self, settings: LocalSettings, learner: Learner, state: Params, of: str = "") -> None:
        self._settings, self._learner, self._state, self._of = settings, learner, state, of
        self._kept = kept_by(settings)
        self._parts: list[_Part] = []

    def begin(self, leaves: Params, differ: np.ndarray) -> None:
        """Begin steps on parameters of the first members.

        Parameters
        ----------
        differ
            A number for each of these members, shape [active]: equal ones have the same step size in each step.
        """
        state = {kept: {name: self._own(kept, name, leaf) for name, leaf in leaves.items()} for kept in self._kept}
        active = len(differ)
        bounds = [0, active] if active == 1 else _changes([differ, *self._counts(leaves, active)])
        self._parts = [
            _Part(start, stop, names, self._of_members(leaves, start, stop), self._kept_of(state, names, start, stop))
            for start, stop in pairwise(bounds)
            for names in _by_precision(leaves)
        ]

    def step_(self, gradients: Params, lr_of: Callable[[int], float]) -> None:
        """Take a step.

        Parameters
        ----------
        gradients
            By parameter; those without one stay as they are.
        lr_of
            Step size of a member.
        """
        if any(gradient.is_sparse for gradient in gradients.values()):
            gradients = self._without_sparse(gradients, lr_of(0))
        for part in self._parts:
            names = [name for name in part.names if name in gradients]
            leaves = [part.leaves[name] for name in names]
            found = [self._learner.part(gradients[name], part.start, part.stop) for name in names]
            found = [_laid_out_as(gradient, leaf) for gradient, leaf in zip(found, leaves, strict=True)]
            kept = {slot: [values[name] for name in names] for slot, values in part.kept.items()}
            self._take(leaves, found, kept, lr_of(part.start))

    def _take(self, leaves: list[Tensor], gradients: list[Tensor], kept: dict[str, list[Tensor]], lr: float) -> None:
        # The fused step rounds numbers of half precision once, `torch.optim` after each operation.
        fused = not leaves or leaves[0].dtype.itemsize >= 4
        settings = self._settings
        if settings.optimizer == "sgd":
            momentum: list[Tensor | None] = [*kept.get(MOMENTUM, [None] * len(leaves))]
            sgd(
                leaves,
                gradients,
                momentum,
                foreach=False,
                fused=fused,
                lr=lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                dampening=0.0,
                nesterov=settings.nesterov,
                maximize=False,
            )
            return
        # One count serves all members of a part, and the step itself adds 1 to it.
        counts = [count[0].clone() if count.ndim else count for count in kept[COUNT]]
        adam(
            leaves,
            gradients,
            kept[MEAN],
            kept[SQUARE],
            kept.get(LARGEST, []),
            counts,
            foreach=False,
            fused=fused,
            decoupled_weight_decay=settings.optimizer == "adamw",
            amsgrad=settings.amsgrad,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=lr,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
            maximize=False,
        )
        for whole, count in zip(kept[COUNT], counts, strict=True):
            if whole is not count:
                whole.fill_(count)

    def _without_sparse(self, gradients: Params, lr: float) -> Params:
        """Return the gradients that are left once plain SGD has taken the sparse ones; others take them as dense."""
        settings = self._settings
        if settings.optimizer != "sgd" or settings.momentum or settings.weight_decay or len(self._parts) != 1:
            return dense(gradients)
        for name, gradient in gradients.items():
            if gradient.is_sparse:  # a large embedding of which a batch uses a few rows
                self._parts[0].leaves[name].add_(gradient, alpha=-lr)
        return {name: gradient for name, gradient in gradients.items() if not gradient.is_sparse}

    def _own(self, kept: str, name: str, leaf: Tensor) -> Tensor:
        key = f"{kept}{self._of}{name}"
        if key not in self._state:
            new = self._learner.zeros(leaf.device) if kept == COUNT else torch.zeros_like(leaf)
            self._state[key] = new
        elif kept != COUNT:
            self._state[key] = _laid_out_as(self._state[key], leaf)
        return self._state[key]

    def _counts(self, leaves: Params, active: int) -> list[np.ndarray]:
        """Return how many steps the optimiser has taken of each parameter, for each of the active members."""
        if COUNT not in self._kept or not leaves:
            return []
        counts = [self._state[f"{COUNT}{self._of}{name}"][:active] for name in leaves]
        return list(torch.stack(counts).cpu().numpy())

    def _of_members(self, values: Params, start: int, stop: int) -> Params:
        return {name: self._learner.part(value, start, stop) for name, value in values.items()}

    def _kept_of(self, state: dict[str, Params], names: Sequence[str], start: int, stop: int) -> dict[str, Params]:
        return {
            kept: self._of_members({name: values[name] for name in names}, start, stop)
            for kept, values in state.items()
        }


@dataclass(frozen=True)
class _Part:
    """What takes a step at once: parameters of the members from ``start`` to ``stop``, and what is kept of them."""

    start: int
    stop: int
    names: tuple[str, ...]
    leaves: Params
    kept: dict[str, Params]


def _by_precision(leaves: Params) -> list[tuple[str, ...]]:
    half = tuple(name for name, leaf in leaves.items() if leaf.dtype.itemsize < 4)
    rest = tuple(name for name in leaves if name not in half)
    return [names for names in (rest, half) if names]


def _changes(rows: Sequence[np.ndarray]) -> list[int]:
    """Return where consecutive members differ in any row, with both ends."""
    table = np.stack(rows)
    inner = np.flatnonzero((table[:, 1:] != table[:, :-1]).any(0)) + 1
    return [0, *inner.tolist(), table.shape[1]]


def _laid_out_as(value: Tensor, leaf: Tensor) -> Tensor:
    """Return a value with the strides of a parameter, which fused steps take for granted."""
    if value.stride() == leaf.stride() or all(
        one == other or size == 1 for one, other, size in zip(value.stride(), leaf.stride(), value.shape, strict=True)
    ):
        return value
    return torch.empty_like(leaf).copy_(value)
