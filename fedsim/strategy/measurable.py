"""What a strategy wants to have measured before it aggregates, and what it gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy  # its parts are imported when they are used

from fedsim.models.layers import LayerGroup


@dataclass(frozen=True)
class Measurable:
    """What a strategy wants to know of a round's models as uploaded: barriers of layers, for each client.

    Parameters
    ----------
    on
        Each client's own validation data (``clients``), or a sample of those of all clients (``server``).
    layers
        Layers that are measured.
    examples
        Largest number of examples of each client, or in the sample.
    together
        Groups of these layers that are replaced together; each layer alone if there are none.
    """

    on: Literal["clients", "server"]
    layers: LayerGroup
    examples: int
    together: tuple[LayerGroup, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The layers of each group that is replaced, by name."""
        if self.together:
            return {group.name: group.layers for group in self.together}
        return {name: (name,) for name in self.layers}


class ClientBarrier(NamedTuple):
    """What a client's loss rises by if it takes some layers from an average in the place of its own.

    Parameters
    ----------
    nats
        Rise of the loss, per example.
    weight
        Training examples of the client.
    examples
        Examples that it was measured on.
    cluster
        Place, in what `measured_clusters` returned, of the clients whose average it is.
    """

    client: int
    nats: float
    weight: float
    examples: int
    cluster: int = 0


class Bounds(NamedTuple):
    """A mean over clients, and a bound on either side that the population's exceeds with some confidence only."""

    low: float
    mean: float
    high: float


def bounds_of(barriers: Sequence[ClientBarrier], confidence: float) -> Bounds:
    """Return the mean over the clients, weighted by training examples, and its one-sided bounds by Student's t.

    Parameters
    ----------
    confidence
        Confidence of each bound by itself; at 0.5 both are the mean.

    Notes
    -----
    All are infinite where a client's barrier is not finite. One client has no bounds: they are infinitely far away, as
    without any client, where the mean is NaN.
    """
    nats, weights = np.array([each.nats for each in barriers]), np.array([each.weight for each in barriers])
    if not len(nats):
        return Bounds(-np.inf, np.nan, np.inf)
    if not np.isfinite(nats).all():
        return Bounds(np.inf, np.inf, np.inf)
    mean = float(np.average(nats, weights=weights))
    if confidence == 0.5:
        return Bounds(mean, mean, mean)
    if len(nats) == 1:
        return Bounds(-np.inf, mean, np.inf)
    shares, count = weights / weights.sum(), len(nats)
    error = float(np.sqrt((shares**2 @ (nats - mean) ** 2) * count / (count - 1)))
    half_width = float(scipy.special.stdtrit(count - 1, confidence)) * error
    return Bounds(mean - half_width, mean, mean + half_width)
