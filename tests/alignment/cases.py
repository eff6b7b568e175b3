"""Small architectures with their symmetries written by hand, random models of them, and what they compute."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, group_norm

from fedsim.alignment.symmetries.permutations import Axis, Segment, Spec, Symmetry
from fedsim.models.params import Params


def fixed(size: int) -> Axis:
    return (Segment(size),)


def along(order: str, size: int, repeat: int = 1) -> Axis:
    return (Segment(size, order, repeat),)


def plain(order: str, units: int) -> Symmetry:
    return Symmetry(units, {order: 1})


def draw(spec: Spec, seed: int) -> Params:
    """Return random parameters; running variances are positive."""
    rng = np.random.default_rng(seed)
    shapes = {key: tuple(sum(part.size for part in axis) for axis in axes) for key, axes in spec.axes.items()}
    drawn = {key: torch.from_numpy(rng.standard_normal(shape)) for key, shape in shapes.items()}
    return {key: value.abs() + 0.1 if key.endswith("running_var") else value for key, value in drawn.items()}


@dataclass(frozen=True)
class Case:
    """An architecture: what may change places, what it computes, and the shape of an example."""

    spec: Spec
    run: Callable[[Params, Tensor], Tensor]
    shape: tuple[int, ...]


def chain(*widths: int) -> Spec:
    """Return the symmetries of an MLP of layers ``fc1``, ``fc2``, ... with these widths, from inputs to outputs."""
    axes, last = {}, fixed(widths[0])
    for number, width in enumerate(widths[1:], start=1):
        own = along(f"fc{number}", width) if number < len(widths) - 1 else fixed(width)
        axes[f"fc{number}.weight"], axes[f"fc{number}.bias"] = (own, last), (own,)
        last = own
    return Spec(tuple(plain(f"fc{n}", width) for n, width in enumerate(widths[1:-1], start=1)), axes)


def run_chain(params: Params, inputs: Tensor) -> Tensor:
    layers = len(params) // 2
    for number in range(1, layers + 1):
        inputs = inputs @ params[f"fc{number}.weight"].T + params[f"fc{number}.bias"]
        inputs = inputs.relu() if number < layers else inputs
    return inputs


def _run_groups(params: Params, inputs: Tensor) -> Tensor:
    hidden = group_norm(inputs @ params["fc1.weight"].T, 4, params["norm.weight"], params["norm.bias"])
    return hidden.relu() @ params["fc2.weight"].T


def _groups() -> Case:
    hidden = along("fc1", 12)
    axes = {
        "fc1.weight": (hidden, fixed(5)),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "fc2.weight": (fixed(3), hidden),
    }
    return Case(Spec((Symmetry(4, {"fc1": 3}),), axes), _run_groups, (5,))


def _run_heads(params: Params, inputs: Tensor) -> Tensor:
    stream = inputs @ params["embed.weight"].T
    packed = stream @ params["in.weight"].T + params["in.bias"]
    queries, keys, values = (part.unflatten(-1, (3, -1)).movedim(-2, 0) for part in packed.split([6, 6, 12], -1))
    mixed = (queries @ keys.mT).softmax(-1) @ values
    stream = stream + mixed.movedim(0, -2).flatten(-2) @ params["out.weight"].T
    return stream @ params["head.weight"].T


def _heads() -> Case:
    stream, values = along("stream", 7), along("values", 12)
    packed = (Segment(6, "keys"), Segment(6, "keys"), Segment(12, "values"))
    axes = {
        "embed.weight": (stream, fixed(5)),
        "in.weight": (packed, stream),
        "in.bias": (packed,),
        "out.weight": (stream, values),
        "head.weight": (fixed(3), stream),
    }
    return Case(Spec((plain("stream", 7), Symmetry(3, {"keys": 2, "values": 4})), axes), _run_heads, (4, 5))


def _run_convolution(params: Params, inputs: Tensor) -> Tensor:
    hidden = conv2d(inputs, params["conv.weight"])
    statistics = params["norm.running_mean"], params["norm.running_var"]
    hidden = batch_norm(hidden, *statistics, params["norm.weight"], params["norm.bias"]).relu()
    return hidden.flatten(1) @ params["fc.weight"].T


def _convolution() -> Case:
    channels = along("conv", 6)
    norm = {f"norm.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    axes = {
        "conv.weight": (channels, fixed(2), fixed(3), fixed(3)),
        **norm,
        "fc.weight": (fixed(3), along("conv", 24, 4)),
    }
    statistics = frozenset({"norm.running_mean", "norm.running_var"})
    return Case(Spec((plain("conv", 6),), axes, statistics), _run_convolution, (2, 4, 4))


def _run_recurrent(params: Params, inputs: Tensor) -> Tensor:
    state = cell = inputs.new_zeros(len(inputs), 6)
    for step in inputs.unbind(1):
        gates = step @ params["in.weight"].T + state @ params["state.weight"].T
        take, forget, new, give = gates.chunk(4, 1)
        cell = forget.sigmoid() * cell + take.sigmoid() * new.tanh()
        state = give.sigmoid() * cell.tanh()
    return state @ params["head.weight"].T


def _recurrent() -> Case:
    gates, state = (Segment(6, "state"),) * 4, along("state", 6)
    axes = {"in.weight": (gates, fixed(3)), "state.weight": (gates, state), "head.weight": (fixed(2), state)}
    return Case(Spec((plain("state", 6),), axes), _run_recurrent, (4, 3))


def _run_residual(params: Params, inputs: Tensor) -> Tensor:
    stream = inputs @ params["embed.weight"].T
    stream = stream + (stream @ params["square.weight"].T).relu()
    stream = stream + (stream @ params["up.weight"].T).relu() @ params["down.weight"].T
    return stream @ params["head.weight"].T


def _residual() -> Case:
    stream, inner = along("stream", 6), along("inner", 8)
    axes = {
        "embed.weight": (stream, fixed(9)),
        "square.weight": (stream, stream),
        "up.weight": (inner, stream),
        "down.weight": (stream, inner),
        "head.weight": (fixed(2), stream),
    }
    return Case(Spec((plain("stream", 6), plain("inner", 8)), axes), _run_residual, (9,))


CASES = {
    "chain": Case(chain(9, 8, 7, 3), run_chain, (9,)),
    "groups": _groups(),
    "heads": _heads(),
    "convolution": _convolution(),
    "recurrent": _recurrent(),
    "residual": _residual(),
}
