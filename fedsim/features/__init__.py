"""Feature skew: ``FEATURES`` maps a name to a function that makes a client's inputs unlike the others'.

A skew is a function ``skew(inputs, client, clients, rng, *, options) -> Tensor`` of normalised inputs, shape [n, ...].
The stream ``rng`` is the same whenever the same examples of a client are asked for.
"""

from collections.abc import Callable

from torch import Tensor

from fedsim.features.noise import noise
from fedsim.features.none import none
from fedsim.features.rotation import rotation

FEATURES: dict[str, Callable[..., Tensor]] = {"none": none, "rotation": rotation, "noise": noise}
