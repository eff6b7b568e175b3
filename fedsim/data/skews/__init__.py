"""Feature skew: ``FEATURES`` maps a name to a function that makes a client's inputs unlike the others'.

A skew is a function ``skew(inputs, client, clients, rng, *, options) -> Tensor`` of normalised inputs, shape [n, ...].
The stream ``rng`` is the same whenever the same examples of a client are asked for.
"""

from collections.abc import Callable

from torch import Tensor

from fedsim.data.skews.noise import noise
from fedsim.data.skews.none import none
from fedsim.data.skews.rotation import rotation

FEATURES: dict[str, Callable[..., Tensor]] = {"none": none, "rotation": rotation, "noise": noise}
