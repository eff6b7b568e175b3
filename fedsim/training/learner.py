"""What a plan trains: one model, or the stacked parameters of a cohort, behind one interface."""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from fedsim.models.params import Params
from fedsim.training.batches import Batch
from fedsim.training.plan import Passes
from fedsim.training.rule import Position, Ruled, Sets


class Learner(Protocol):
    """What is trained: one model, or the stacked parameters of several members.

    Attributes
    ----------
    passes
        Of the mini-batch in the last step.
    """

    passes: Passes

    def select(self, name: str) -> None:
        """Train from now on the ``model``, or the set of that name, which holds all entries of one."""

    def leaves(self, names: Collection[str], active: int) -> Params:
        """Return the parameters of these names, and those of trained sets, of the first ``active`` members.

        They are leaves that take gradients.
        """

    def value_of(self, name: str, active: int) -> Params:
        """Return the entries of the model or of a set as they are, of the first ``active`` members."""

    def first(self, value: Tensor, active: int) -> Tensor:
        """Return what belongs to the first ``active`` members of a tensor that is shaped like a parameter."""

    def backward(self, batch: Batch, position: Position) -> Tensor:
        """Put gradients of each member's mean loss into the leaves; return these losses, detached."""


def trained_entries(ruled: Ruled, sets: Sets, names: Collection[str], model: Collection[str]) -> list[tuple[str, str]]:
    """Return the entries of trained sets that a phase trains: of those that the model has too, the trainable ones."""
    return [
        (name, key)
        for name in ruled.rule.trained
        for key, value in sets[name].items()
        if value.is_floating_point() and (key in names or key not in model)
    ]


def no_such_set(name: str, sets: Sets) -> ValueError:
    """Return the error of a phase that names a set which the client does not have."""
    return ValueError(f"a phase names the set {name!r}, and the client has: {', '.join(['model', *sets])}")
