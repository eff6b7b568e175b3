"""Powers of a common factor of all weights by which what a model computes grows."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from fedsim.models.graph import Operation
from fedsim.models.norms import NORM_TYPES
from fedsim.models.operation import weights_only
from fedsim.models.products import SHAPES, addend_of, factors_of, is_product, name_of

QUOTIENTS = {"truediv", "itruediv", "div", "divide", "truedivide"}
SUMS = {"add", "iadd", "sub", "isub", "subtract", "rsub"}
CLAMPS = {"clamp", "clip", "clampmin", "clampmax"}
# What gives c times its result for c times its inputs, c > 0. All that is not named here has no power.
HOMOGENEOUS = {
    *("relu", "leakyrelu", "rrelu", "identity", "dropout", "alphadropout", "featurealphadropout"),
    *(
        f"{name}{d}d"
        for name in ("dropout", "avgpool", "maxpool", "adaptiveavgpool", "adaptivemaxpool")
        for d in (1, 2, 3)
    ),
    *(f"{name}{d}d" for name in ("zeropad", "reflectionpad", "replicationpad", "circularpad") for d in (1, 2, 3)),
    *("sum", "mean", "amax", "amin", "max", "min", "maximum", "minimum", "median", "cumsum", "abs", "absolute"),
    *("neg", "negative", "positive", "clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16"),
    *("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "expand", "expandas", "repeat", "tile"),
    *("permute", "transpose", "t", "mt", "movedim", "moveaxis", "swapaxes", "swapdims", "roll", "flip", "diagonal"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "chunk", "split", "tensorsplit", "unbind"),
    *("getitem", "select", "narrow", "tril", "triu", "repeatinterleave", "fold", "unfold", "channelshuffle"),
    *("pixelshuffle", "pixelunshuffle", "interpolate", "upsample", "upsamplingnearest2d", "upsamplingbilinear2d"),
    *("embedding", "embeddingbag"),
}


def degrees_of(operations: Sequence[Operation], root: nn.Module) -> dict[int, int]:
    """Return the power of a common factor of all weights by which each operation's result grows.

    It is that of the inputs, and one more with weights; those of factors add up, and a normalisation starts again at 0.
    Buffers, such as the mean and deviation that inputs are normalised by, are no weights.
    What depends on no weights has 0. Where inputs of different powers meet, as in a residual sum, there is none, nor is
    there after anything else that is not known to be homogeneous: a softmax, an activation such as GELU, a sum with a
    number, or a module with several matrices such as attention; neither is there further up, until the next
    normalisation.

    Returns
    -------
    dict[int, int]
        By the position of the operation; without those that have none.
    """
    degrees: dict[int, int] = {}
    shapes: set[int] = set()
    given: set[int] = set()  # what depends on no weights
    for place, each in enumerate(weights_only(operations, root)):
        nodes = dict(zip(each.node.all_input_nodes, each.inputs, strict=True))
        if name_of(each) in SHAPES or (nodes and not each.entries and shapes.issuperset(nodes.values())):
            shapes.add(place)
            continue
        if not each.entries and (given | shapes).issuperset(nodes.values()):
            given.add(place)
            degrees[place] = 0
            continue
        degree = _degree(each, root, {node: degrees.get(k) for node, k in nodes.items() if k not in shapes})
        for step in each.tail:
            degree = _degree(step, root, dict.fromkeys(step.node.all_input_nodes, degree))
        if degree is not None:
            degrees[place] = degree
    return degrees


def _degree(step: Operation, root: nn.Module, of: Mapping[fx.Node, int | None]) -> int | None:
    """Return the power of one operation, for those of its inputs."""
    name = name_of(step)
    module = None if step.kind is None else root.get_submodule(str(step.node.target))
    if isinstance(module, NORM_TYPES):
        return int(bool(step.entries))
    if None in of.values() or (module is not None and _matrices(step, module) > 1):
        return None
    known = {node: degree for node, degree in of.items() if degree is not None}
    if (is_product(step) or name in QUOTIENTS) and not step.node.kwargs.get("rounding_mode"):
        first, *others = (known.get(node, 0) for node in factors_of(step))
        degree = first + (-sum(others) if name in QUOTIENTS else sum(others)) + bool(step.entries)
        added = addend_of(step)
        # Weights that are added are biases, which a layer's power leaves out too.
        return degree if added is None or added.op == "get_attr" or known.get(added) == degree else None
    if name == "pow":
        power = step.node.args[1] if len(step.node.args) > 1 else None
        return power * sum(known.values()) if isinstance(power, int) else None
    if name == "square":
        return 2 * sum(known.values())
    degrees = set(known.values()) or {0}
    if len(degrees) > 1 or not _is_homogeneous(step.node, name):
        return None
    return degrees.pop() + bool(step.entries)


def _is_homogeneous(node: fx.Node, name: str) -> bool:
    """Return whether the result grows by the power of the inputs; in sums, clamps and paddings with no number but 0."""
    numbers: list[Any] = []
    if name in SUMS:
        numbers = [each for each in (*node.args[:2], node.kwargs.get("other")) if not isinstance(each, fx.Node)]
    elif name in CLAMPS:
        numbers = [*node.args[1:], *node.kwargs.values()]
    elif name == "pad":
        numbers = [*node.args[3:], node.kwargs.get("value")]
    elif name not in HOMOGENEOUS:
        return node.op == "get_attr"
    return all(each is None or each == 0 for each in numbers)


def _matrices(step: Operation, module: nn.Module) -> int:
    """Return how many of the weights of a module are matrices; one that is computed from several counts as one."""
    if hasattr(module, "parametrizations"):
        return 1
    own = {entry.name for entry in step.entries}
    return sum(value.ndim > 1 for name, value in module.named_parameters() if name in own)
