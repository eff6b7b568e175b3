"""The interface of what a plan trains: one model, or the stacked parameters of a cohort."""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from fedsim.models.params import Params
from fedsim.training.batches import Batch
from fedsim.training.context import Sets
from fedsim.training.plan import Passes
from fedsim.training.rule import Position, Ruled


class Learner(Protocol):
    """One model, or the stacked parameters of several members, in training.

    Attributes
    ----------
    passes
        Passes of the mini-batch in the last step.
    stacked
        The dimension of members that comes first in all tensors: their number, or none for a single model.
    """

    passes: Passes
    stacked: tuple[int, ...]

    def select(self, name: str) -> None:
        """Train the ``model`` from now on, or the set of that name, which holds all entries of a model."""

    def leaves(self, names: Collection[str], active: int) -> Params:
        """Return the parameters of these names and of trained sets, for the first ``active`` members.

        They are leaves that take gradients.
        """

    def value_of(self, name: str, active: int) -> Params:
        """Return the current entries of the model or of a set, for the first ``active`` members."""

    def part(self, value: Tensor, start: int, stop: int) -> Tensor:
        """Return the part of a tensor shaped like a parameter that belongs to the members from start to stop."""

    def backward(self, batch: Batch, position: Position) -> Tensor:
        """Write the gradients of each member's mean loss into the leaves; return these losses, detached."""


def trained_entries(ruled: Ruled, sets: Sets, names: Collection[str], model: Collection[str]) -> list[tuple[str, str]]:
    """Return the entries of trained sets that a phase trains: where the model has them too, only the trainable ones."""
    return [
        (name, key)
        for name in ruled.rule.trained
        for key, value in sets[name].items()
        if value.is_floating_point() and (key in names or key not in model)
    ]


def no_such_set(name: str, sets: Sets) -> ValueError:
    """Return the error for a phase that names a set that the client does not have."""
    return ValueError(f"a phase names the set {name!r}, and the client has: {', '.join(['model', *sets])}")
