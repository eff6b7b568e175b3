"""Steps of the optimisers, by torch's functional forms: of one model, and of the members of a cohort."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedsim.models.params import Params, dense, laid_out_as
from fedsim.training.clipping import clipped
from fedsim.training.learner import Learner
from fedsim.training.parameter_groups import ParameterGroup
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
    group_of
        Group of a parameter, by its name.
    state
        What it keeps of each parameter, by name; it is changed in place, and what is missing begins at zero.
    of
        Beginning of the names of what is trained: each model has its own state.
    """

    def __init__(
        self,
        settings: LocalSettings,
        learner: Learner,
        group_of: Callable[[str], ParameterGroup],
        state: Params,
        of: str = "",
    ) -> None:
        self._settings, self._learner, self._group_of, self._state, self._of = settings, learner, group_of, state, of
        self._kept = kept_by(settings)
        self._take = self._take_sgd if settings.optimizer == "sgd" else self._take_adam
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
        together: dict[tuple[ParameterGroup, torch.dtype], list[str]] = {}
        for name, leaf in leaves.items():
            together.setdefault((self._group_of(name), leaf.dtype), []).append(name)
        self._parts = [
            _Part(
                start,
                group,
                # The fused step rounds numbers of half precision once, `torch.optim` after each operation.
                dtype.itemsize >= 4,
                {name: self._learner.part(leaves[name], start, stop) for name in names},
                {
                    kept: {name: self._learner.part(values[name], start, stop) for name in names}
                    for kept, values in state.items()
                },
                partial(self._learner.part, start=start, stop=stop),
            )
            for start, stop in pairwise(bounds)
            for (group, dtype), names in together.items()
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
        if self._settings.clip_norm is not None:
            gradients = clipped(dense(gradients), self._settings.clip_norm, stacked=bool(self._learner.stacked))
        if any(gradient.is_sparse for gradient in gradients.values()):
            gradients = self._without_sparse(gradients, lr_of)
        for part in self._parts:
            names = [name for name in part.leaves if name in gradients]
            found = [laid_out_as(part.of(gradients[name]), part.leaves[name]) for name in names]
            self._take(part, names, found, lr_of(part.start) * part.group.lr_scale)

    def _take_sgd(self, part: "_Part", names: Sequence[str], gradients: list[Tensor], lr: float) -> None:
        options: dict[str, Any] = {
            "lr": lr,
            "momentum": self._settings.momentum,
            "weight_decay": part.group.weight_decay,
            "dampening": 0.0,
            "nesterov": self._settings.nesterov,
            "maximize": False,
        }
        leaves, momentum = [part.leaves[name] for name in names], part.of_slot(MOMENTUM, names, self._settings.momentum)
        if part.is_fused and names:
            # What `sgd` calls, which first sorts the tensors by device and type in each step: a part has one of each.
            torch._fused_sgd_(leaves, gradients, momentum, is_first_step=False, **options)
        else:
            buffers: list[Tensor | None] = [*momentum] if momentum else [None] * len(names)
            sgd(leaves, gradients, buffers, foreach=False, fused=False, **options)

    def _take_adam(self, part: "_Part", names: Sequence[str], gradients: list[Tensor], lr: float) -> None:
        settings = self._settings
        # One count serves all members of a part, and the step itself adds 1 to it.
        wholes = part.of_slot(COUNT, names)
        counts = [count[0].clone() if count.ndim else count for count in wholes]
        adam(
            [part.leaves[name] for name in names],
            gradients,
            part.of_slot(MEAN, names),
            part.of_slot(SQUARE, names),
            part.of_slot(LARGEST, names) if settings.amsgrad else [],
            counts,
            foreach=False,
            fused=part.is_fused,
            decoupled_weight_decay=settings.optimizer == "adamw",
            amsgrad=settings.amsgrad,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=lr,
            weight_decay=part.group.weight_decay,
            eps=settings.eps,
            maximize=False,
        )
        for whole, count in zip(wholes, counts, strict=True):
            if whole is not count:
                whole.fill_(count)

    def _without_sparse(self, gradients: Params, lr_of: Callable[[int], float]) -> Params:
        """Return the gradients that are left once plain SGD has taken the sparse ones; others take them as dense."""
        settings = self._settings
        if settings.optimizer != "sgd" or settings.momentum or settings.weight_decay or self._learner.stacked:
            return dense(gradients)
        for part in self._parts:
            for name, leaf in part.leaves.items():
                # Of a large embedding of which a batch uses a few rows.
                if name in gradients and gradients[name].is_sparse:
                    leaf.add_(gradients[name], alpha=-lr_of(0) * part.group.lr_scale)
        return {name: gradient for name, gradient in gradients.items() if not gradient.is_sparse}

    def _own(self, kept: str, name: str, leaf: Tensor) -> Tensor:
        key = f"{kept}{self._of}{name}"
        if key not in self._state:
            new = torch.zeros(self._learner.stacked, device=leaf.device) if kept == COUNT else torch.zeros_like(leaf)
            self._state[key] = new
        elif kept != COUNT:
            self._state[key] = laid_out_as(self._state[key], leaf)
        return self._state[key]

    def _counts(self, leaves: Params, active: int) -> list[np.ndarray]:
        """Return how many steps the optimiser has taken of each parameter, for each of the active members."""
        if COUNT not in self._kept or not leaves:
            return []
        counts = [self._state[f"{COUNT}{self._of}{name}"][:active] for name in leaves]
        return list(torch.stack(counts).cpu().numpy())


@dataclass(frozen=True)
class _Part:
    """Parameters that take a step at once: of one group, and of some members, from ``start`` on."""

    start: int
    group: ParameterGroup
    is_fused: bool
    leaves: Params
    kept: dict[str, Params]
    of: Callable[[Tensor], Tensor]

    def of_slot(self, slot: str, names: Sequence[str], is_kept: object = True) -> list[Tensor]:
        """Return what the optimiser keeps of some parameters in one of its slots, such as `MEAN`, if it is kept."""
        return [self.kept[slot][name] for name in names] if is_kept else []


def _changes(rows: Sequence[np.ndarray]) -> list[int]:
    """Return where consecutive members differ in any row, with both ends."""
    table = np.stack(rows)
    inner = np.flatnonzero((table[:, 1:] != table[:, :-1]).any(0)) + 1
    return [0, *inner.tolist(), table.shape[1]]
