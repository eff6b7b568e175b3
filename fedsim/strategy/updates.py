"""What clients send up in a round, and what a method makes of it, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fedsim.errors import DivergedError, RunError
from fedsim.models.layers import Layers
from fedsim.models.params import Params, is_finite


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends up after local training.

    Parameters
    ----------
    shared
        The layers that are shared in this round.
    num_examples
        Training examples of the client: its weight in the average.
    metrics
        What the client measured while training.
    probe
        Its other layers, where the analysis asked for them; not counted as traffic.
    sets
        Named parameter sets of its rule.
    missing
        Why its own model has no finite loss, if it has none.
    """

    client: int
    shared: Params
    num_examples: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    probe: Params = field(default_factory=dict)
    sets: Mapping[str, Params] = field(default_factory=dict)
    missing: str = ""

    def is_finite(self, layers: Layers) -> bool:
        """Tell whether the layers that the client keeps are finite too; a model that diverged has no barriers.

        Buffers that are no statistics do not count: masks are infinite.
        """
        keys = set(layers.keys(layers.names))
        return is_finite({key: value for key, value in self.probe.items() if key in keys})


@dataclass
class Received:
    """What came back in a round.

    Parameters
    ----------
    updates
        The valid ones, sorted by client; where they were averaged as they came, without their layers.
    left_out
        Why each other participant is left out of the average.
    average
        Average of the shared layers, where they were averaged as they came.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    average: Params | None = None


def check_average(averaged: object, model: Params, where: str) -> Params:
    """Check what a strategy's `aggregate` returned, and give it the dtypes of the model.

    Parameters
    ----------
    where
        Names the hook in a message.

    Raises
    ------
    RunError
        If it is not a dict of finite tensors with keys and shapes of the model.
    """
    if not isinstance(averaged, dict):
        raise RunError(f"{where} returns a {type(averaged).__name__}; it must be a dict of entries of the model")
    for key, value in averaged.items():
        if key not in model:
            raise RunError(f"{where} returns {key!r}, which is no entry of the model: {', '.join(model)}")
        if not isinstance(value, torch.Tensor) or value.shape != model[key].shape:
            raise RunError(f"{where} returns {key!r} that is not a tensor of shape {tuple(model[key].shape)}")
        if not is_finite({key: value}):
            raise DivergedError(f"{where} returns {key!r} with values that are not finite")
    return {key: value.to(model[key].dtype) for key, value in averaged.items()}
