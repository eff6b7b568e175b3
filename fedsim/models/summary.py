"""A model in a few numbers: its layers, and how much of it trains."""

from dataclasses import dataclass

from torch import nn

from fedsim.models.asymmetry import fixed_entries
from fedsim.models.frozen import frozen_of
from fedsim.models.layers import Layers


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a model, and its parameters.

    Parameters
    ----------
    layers, frozen
        Names of the layers that move, in the order of their use, and of those that are frozen.
    head
        Names of the layers that give the logits; none if they are not known.
    order
        How the order was found, as in `fedsim.models.layers.Layers`.
    trainable, all_parameters
        Number of parameters that train, and of all; fixed entries of asymmetric weights do not train.
    trainable_bytes, all_bytes
        Their sizes.
    """

    layers: tuple[str, ...]
    frozen: tuple[str, ...]
    head: tuple[str, ...]
    order: str
    trainable: int
    all_parameters: int
    trainable_bytes: int
    all_bytes: int

    @property
    def share(self) -> str:
        """How many parameters train, in numbers and percent, and their bytes."""
        percent = 100 * self.trainable / self.all_parameters
        return (
            f"{self.trainable:,} of {self.all_parameters:,} parameters train ({percent:.3g} %), "
            f"{self.trainable_bytes:,} of {self.all_bytes:,} bytes"
        )


def summary_of(model: nn.Module) -> ModelSummary:
    """Return the summary of a model with its layers as they are at rest."""
    layers, fixed = Layers.of(model), frozen_of(model)
    held = {key for layer in layers if layer.kind == "held" for key in layer.keys}
    parameters = dict(model.named_parameters()) | {key: value for key, value in model.named_buffers() if key in held}
    moving = {key: value for key, value in parameters.items() if key not in fixed and key not in held}
    still = {key: int((own.free == 0).sum()) for key, own in fixed_entries(model).items() if key in moving}
    return ModelSummary(
        layers=layers.names,
        frozen=layers.frozen,
        head=layers.head,
        order=layers.order,
        trainable=sum(value.numel() - still.get(key, 0) for key, value in moving.items()),
        all_parameters=sum(value.numel() for value in parameters.values()),
        trainable_bytes=sum(value.nbytes - still.get(key, 0) * value.itemsize for key, value in moving.items()),
        all_bytes=sum(value.nbytes for value in parameters.values()),
    )
