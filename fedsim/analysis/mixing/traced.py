"""A model as the operations that it consists of, found once for each shape of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedsim.analysis.mixing.mixes import Part
from fedsim.models.frozen import copy_of
from fedsim.models.graph import NotTraceableError, Operation, count_flops, probes_of, trace
from fedsim.models.params import Params, load_state_


@dataclass(frozen=True)
class Traced:
    """The operations of a model.

    Parameters
    ----------
    model
        The model itself, with any weights.
    probes
        The inputs that it was traced with.
    """

    model: nn.Module
    operations: Sequence[Operation]
    probes: Tensor

    @cached_property
    def flops(self) -> list[float]:
        """Floating-point operations per example of each operation."""
        return count_flops(self.operations, self.model, self.probes)

    @property
    def is_channels_last(self) -> bool:
        """Whether images and weights of convolutions are stored with their channels last."""
        # Pooling is faster so by far, but torch's group normalisation on a CPU is ten times slower.
        return not any(each.kind is nn.GroupNorm for each in self.operations)


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
    model
        A copy of the model in eval mode.
    """

    def __init__(self, model: nn.Module, state: Params, parts: Sequence[Part]) -> None:
        self.model = copy_of(model).eval()
        load_state_(self.model, state)
        self._keys = [part.keys for part in parts]
        self._found: dict[tuple[torch.Size, torch.dtype, torch.device], Traced | NotTraceableError] = {}

    def traced(self, inputs: Tensor) -> Traced:
        """Return the model's operations on inputs of this shape.

        Raises
        ------
        NotTraceableError
            If the model can only be run as a whole.
        ValueError
            If there are no inputs.
        """
        kind = (inputs.shape[1:], inputs.dtype, inputs.device)
        if kind not in self._found:
            probes = probes_of(inputs)
            try:
                self._found[kind] = Traced(self.model, trace(self.model, self._keys, probes), probes)
            except NotTraceableError as reason:
                self._found[kind] = reason
        found = self._found[kind]
        if isinstance(found, NotTraceableError):
            raise found
        return found
