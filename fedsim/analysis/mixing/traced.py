"""A model as the operations that it consists of, found once for each shape of its inputs."""

import copy
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedsim.analysis.mixing.mixes import Part
from fedsim.data.dataset import channels_last, in_usual_order
from fedsim.errors import first_line
from fedsim.models.copies import copy_of, loaded
from fedsim.models.draws import same_draws
from fedsim.models.graph import NotTraceableError, Operation, count_flops, probes_of, trace
from fedsim.models.params import Params
from fedsim.models.probing import results_of
from fedsim.models.purity import (
    draws_numbers,
    is_compiled,
    is_same_in_any_batch,
    keeps_something,
    writes_to_state,
)

logger = logging.getLogger(__name__)
_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def say_once(model: nn.Module, text: str, level: int = logging.INFO) -> None:
    """Log a line about a model, unless that has been said of it before."""
    said = _said.setdefault(model, set())
    if text not in said:
        said.add(text)
        logger.log(level, "%s", text)


@dataclass(eq=False)
class Traced:
    """The operations of a model.

    Parameters
    ----------
    model
        The model itself, with any weights.
    probes
        The inputs that it was traced with.
    checked
        Number of examples of data on which they have been compared with the whole model.
    """

    model: nn.Module
    operations: Sequence[Operation]
    probes: Tensor
    checked: int = 0

    @cached_property
    def flops(self) -> list[float]:
        """Floating-point operations per example of each operation."""
        return count_flops(self.operations, self.model, self.probes)

    @cached_property
    def is_channels_last(self) -> bool:
        """Whether images and weights of convolutions are stored with their channels last."""
        # Pooling is faster so by far, but torch's group normalisation on a CPU is ten times slower.
        if self.probes.ndim != 4 or any(each.kind is nn.GroupNorm for each in self.operations):
            return False
        try:
            results_of(self.operations, self.model, prepared(self.model.state_dict(), True), channels_last(self.probes))
        except RuntimeError:  # its code views images in the usual order
            return False
        return True

    def changed_share(self, parts: Collection[int]) -> float:
        """Return the share of a forward pass that must be repeated when these parts change."""
        changed, dirty = set(parts), set[int]()
        for i, each in enumerate(self.operations):
            if not changed.isdisjoint(each.parts) or not dirty.isdisjoint(each.inputs):
                dirty.add(i)
        return sum(self.flops[i] for i in dirty) / sum(self.flops) if sum(self.flops) else 1.0


def prepared(state: Params, is_channels_last: bool) -> Params:
    """Return a state with the weights of convolutions in the order in which they are used fastest."""
    order = torch.channels_last if is_channels_last else torch.contiguous_format
    return {key: v.contiguous(memory_format=order) if v.ndim == 4 else v for key, v in state.items()}


def in_order(inputs: Tensor, is_channels_last: bool) -> Tensor:
    """Return inputs in the same order."""
    if inputs.ndim != 4:
        return inputs
    return channels_last(inputs) if is_channels_last else in_usual_order(inputs)


class Tracer:
    """Traces a model once for each shape of its inputs.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed.
    state
        Weights to trace it with.
    parts
        Which entries of the model have one source.

    Attributes
    ----------
    origin
        The model itself.
    model
        A copy of the model in eval mode, which is never run: it holds nothing but what the model held.
    """

    def __init__(self, model: nn.Module, state: Params, parts: Sequence[Part]) -> None:
        self.origin, self.model = model, loaded(model, state)
        self._keys = [part.keys for part in parts]
        self._found: dict[tuple[torch.Size, torch.dtype, torch.device], Traced | NotTraceableError] = {}
        self._answers: dict[tuple[object, ...], bool] = {}
        self._outputs: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    def copy(self) -> Self:
        """Return a tracer that knows the same, and whose refusals leave this one as it is."""
        other = copy.copy(self)
        other._found = dict(self._found)
        return other

    def traced(self, inputs: Tensor) -> Traced:
        """Return the model's operations on inputs of this shape.

        Raises
        ------
        NotTraceableError
            If the model can only be run as a whole.
        ValueError
            If there are no inputs.
        """
        kind = kind_of(inputs)
        if kind not in self._found:
            probes = probes_of(inputs)
            model = copy_of(self.model, shares_parameters=True)
            try:
                self._found[kind] = Traced(model, trace(model, self._keys, probes), probes)
            except NotTraceableError as reason:
                self._found[kind] = reason
        found = self._found[kind]
        if isinstance(found, NotTraceableError):
            raise found
        return found

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return what the model gives for two of the inputs."""
        kind = kind_of(inputs)
        if kind not in self._outputs:
            with torch.inference_mode(), same_draws(inputs.device):
                self._outputs[kind] = copy_of(self.model)(probes_of(inputs)[:2])
        return self._outputs[kind]

    def is_function(self, inputs: Tensor) -> bool:
        """Return whether the model is a function of its inputs and weights, which keeps nothing of a call."""
        return self._answer(
            ("function", *kind_of(inputs)),
            lambda: (
                not is_compiled(self.model)
                and not any(holds(self.model, inputs) for holds in (writes_to_state, keeps_something))
                and not self.draws(inputs)
            ),
        )

    def is_same_in_any_batch(self, inputs: Tensor) -> bool:
        """Return whether what the model gives for an example is the same in another batch, and in another call."""
        return self._answer(("same", *kind_of(inputs)), lambda: is_same_in_any_batch(self.model, probes_of(inputs)))

    def draws(self, inputs: Tensor, *, training: bool = False) -> bool:
        """Return whether the model draws from the global random streams, in evaluation mode or in training mode."""
        return self._answer(
            ("draws", training, *kind_of(inputs)),
            lambda: draws_numbers(self.model, probes_of(inputs), training=training),
        )

    def _answer(self, question: tuple[object, ...], ask: Callable[[], bool]) -> bool:
        if question not in self._answers:
            self._answers[question] = ask()
        return self._answers[question]

    def refuse(self, inputs: Tensor, reason: NotTraceableError) -> None:
        """Let the model be run as a whole on inputs of this shape from now on."""
        self._found[kind_of(inputs)] = reason


@contextmanager
def graph_errors() -> Iterator[None]:
    """Turn whatever is raised into the reason why a model is not evaluated operation by operation."""
    try:
        yield
    except Exception as error:  # a model's operations may raise anything
        raise NotTraceableError(f"its graph cannot be run ({first_line(error)})") from error


def kind_of(inputs: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    """Return what a model is probed once for: the shape of an example, its type and its device."""
    return inputs.shape[1:], inputs.dtype, inputs.device
