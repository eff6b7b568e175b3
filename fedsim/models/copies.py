"""Models with other weights."""

from torch import nn

from fedsim.models.frozen import copy_of
from fedsim.models.params import Params, load_state_


def loaded(model: nn.Module, params: Params) -> nn.Module:
    """Return a copy of a model in eval mode with all entries of another state."""
    net = copy_of(model).eval()
    load_state_(net, params)
    return net
