"""A model that a client's step evaluates on its mini-batch, and does not train."""

from collections.abc import Collection

from fedsim.models.params import Params
from fedsim.strategy import Step


def reference(step: Step, model: Params, parameters: Collection[str]) -> Params:
    """Return a model for one forward pass over the mini-batch without gradients, and count the pass.

    Parameters
    ----------
    parameters
        Keys of its parameters; all other entries are copied, as a pass may change running statistics.
    """
    step.network.passes.forward += 1
    return {key: value if key in parameters else value.clone() for key, value in model.items()}
