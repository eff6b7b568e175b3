"""Operations of a model at which the mean and the scale of each channel can be set, for `fedsim.alignment.repair`."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fedsim.models.copies import copy_of
from fedsim.models.graph import NotTraceableError, Operation, probes_of, trace
from fedsim.models.norms import StatisticsNorm
from fedsim.models.params import Params, load_state_, state_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Weighted sums of the inputs, one per channel. A subclass may compute anything.
SUMS = (nn.Linear, *CONVOLUTIONS)


class ChannelSite(NamedTuple):
    """An operation in which each channel has its own scale, and perhaps a bias.

    Parameters
    ----------
    dimension
        Dimension of the channels in the result.
    weight, bias
        State-dict keys, or None if it has no such entry.
    statistics
        Whether it normalises by running statistics.
    """

    dimension: int
    weight: str | None
    bias: str | None
    statistics: bool = False


def traced(model: nn.Module, params: Params, inputs: Tensor) -> tuple[list[Operation], nn.Module]:
    """Return a model's operations and the copy of the model that they run in, with these parameters.

    Raises
    ------
    ValueError
        If there are no inputs, or the model is not a graph of operations on single examples.
    """
    root = copy_of(model).eval()
    load_state_(root, params)
    try:
        return trace(root, [tuple(state_of(root))], probes_of(inputs)), root
    except NotTraceableError as reason:
        raise ValueError(
            f"{type(model).__name__} cannot be corrected layer by layer: {reason}; omit the correction"
        ) from None


def sites_of(operations: Sequence[Operation], root: nn.Module) -> dict[int, ChannelSite]:
    """Return the sites by the positions of their operations.

    Sums before a normalisation that is one and the last sum, the classifier, are not included, nor is what is frozen.
    """
    uses = Counter(entry.key for each in operations for entry in each.entries)
    users = Counter(k for each in operations for k in each.inputs)
    sites: dict[int, ChannelSite] = {}
    for i, each in enumerate(operations):
        site = _site(each, root)
        if site is None or any(uses[key] > 1 for key in (site.weight, site.bias) if key):
            continue
        sites[i] = site
        before = each.inputs[0]
        follows = each.kind not in SUMS and operations[before].kind in SUMS and not operations[before].tail
        if follows and users[before] == 1:
            sites.pop(before, None)
    last = max((i for i, each in enumerate(operations) if each.kind in SUMS), default=0)
    sites.pop(last, None)
    return sites


def _site(operation: Operation, root: nn.Module) -> ChannelSite | None:
    if operation.kind is None:
        return None
    module = root.get_submodule(str(operation.node.target))
    key = {entry.name: entry.key for entry in operation.entries}
    weight, bias = key.get("weight"), key.get("bias")
    if operation.kind in SUMS:
        dimension = -1 if operation.kind is nn.Linear else 1
        return ChannelSite(dimension, weight, bias) if weight else None
    if isinstance(module, StatisticsNorm):
        statistics = "running_mean" in key
        return ChannelSite(1, weight, bias, statistics) if weight or statistics else None
    if operation.kind is nn.GroupNorm and weight:
        return ChannelSite(1, weight, bias)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight and len(module.normalized_shape) == 1:
        return ChannelSite(-1, weight, bias) if operation.kind in (nn.LayerNorm, nn.RMSNorm) else None
    return None
