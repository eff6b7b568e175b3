"""Feature skew: ``FEATURES`` maps a name to a function that makes each client's inputs different.

A skew is a function ``skew(inputs, client, clients, rng, *, options) -> Tensor`` of normalised inputs, shape [n, ...].
The stream ``rng`` is the same each time that the same examples of a client are requested.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim.lazy import LazyTable

if TYPE_CHECKING:
    from torch import Tensor

FEATURES: "LazyTable[Callable[..., Tensor]]" = LazyTable(
    {
        "none": "fedsim.data.skews.none:none",
        "rotation": "fedsim.data.skews.rotation:rotation",
        "noise": "fedsim.data.skews.noise:noise",
    }
)
