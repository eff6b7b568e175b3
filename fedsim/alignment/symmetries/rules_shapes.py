"""The effect of operations that move, join or drop entries on the units of their inputs."""

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.alignment.symmetries.layouts import Dimension, Layout, join_, narrow, plain, reshape, size_of, stay_
from fedsim.alignment.symmetries.rules import FUNCTIONS, Call, function_rule, module_rule
from fedsim.alignment.symmetries.symbols import UnknownError, fixed, fresh, resolve
from fedsim.alignment.symmetries.unification import fix_


@module_rule(nn.Flatten, nn.Unflatten)
@function_rule("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
def reshaped(call: Call) -> Layout:
    """Entries keep their order."""
    if 0 in call.result.shape or call.result.numel() != torch.Size(call.layout.shape).numel():
        raise UnknownError
    return reshape(call.layout, call.result.shape)


@function_rule("permute", "transpose", "swapaxes", "swapdims", "movedim", "t", "adjoint", "expand", "broadcast_to")
@function_rule("getitem", "select", "narrow", "chunk", "split", "tensor_split", "unbind", "flip", "roll")
def moved(call: Call) -> Any:
    """Each entry of the result is one of the input, which is identified by tensors of coordinates."""
    if call.args and not isinstance(call.args[0], Layout):
        return call.args[0][call.args[1]]
    if any(piece.symbol for each in call.layouts[1:] for axis in each.dimensions for piece in resolve(plain(axis))):
        raise UnknownError
    return read_off(call)


@function_rule("expand_as")
def read_off(call: Call) -> Any:
    """As `moved`, regardless of the other arguments."""
    if not call.args:
        raise UnknownError
    shape = call.layout.shape
    grids = [
        call.run(torch.arange(size).view(-1, *[1] * (len(shape) - i - 1)).expand(shape)) for i, size in enumerate(shape)
    ]
    if isinstance(call.result, Tensor):
        return _moved(call.layout, grids, call.result)
    return tuple(_moved(call.layout, each, result) for *each, result in zip(*grids, call.result, strict=True))


@function_rule("size", "dim", "numel", "is_floating_point")
def attribute(call: Call) -> Any:
    """Give a property of a tensor, or the tensor with its dimensions in another order."""
    return read_off(call) if isinstance(call.result, Tensor) else call.result


FUNCTIONS[getattr] = FUNCTIONS[len] = attribute


def _moved(layout: Layout, grids: list[Tensor], result: Tensor) -> Layout:
    """Return the layout of a result, given the coordinates of its entries in the input."""
    if 0 in result.shape:
        raise UnknownError
    found: list[Dimension] = [fixed(size) for size in result.shape]
    origin: dict[int, int] = {}
    for i, grid in enumerate(grids):
        varies = [j for j, size in enumerate(grid.shape) if size > 1 and not bool((grid == grid.narrow(j, 0, 1)).all())]
        if len(varies) > 1 or (varies and varies[0] in origin):
            raise UnknownError
        line = grid.flatten()[:1] if not varies else grid.movedim(varies[0], 0).flatten(1)[:, 0]
        start, stop = int(line[0]), int(line[0]) + len(line)
        if line.tolist() == list(range(start, stop)):
            layout = narrow(layout, i, start, stop)
        else:
            stay_(layout.dimensions[i])
        if varies:
            origin[varies[0]] = i
    for j, i in origin.items():
        same = size_of(layout.dimensions[i]) == result.shape[j]
        found[j] = layout.dimensions[i] if same else fixed(result.shape[j])
    return Layout(tuple(found))


@function_rule("cat", "concat", "concatenate")
def joined(call: Call) -> Layout:
    """Tensors are concatenated along one dimension and agree in the others."""
    layouts, chosen = call.get(0, "tensors", ()), call.get(1, "dim", call.kwargs.get("axis", 0))
    if not layouts or not all(
        isinstance(each, Layout) and len(each.dimensions) == call.result.ndim for each in layouts
    ):
        raise UnknownError
    first = list(layouts[0].dimensions)
    chosen %= len(first)
    for other in layouts[1:]:
        first = [each if i == chosen else join_(each, other.dimensions[i]) for i, each in enumerate(first)]
    first[chosen] = [piece for each in layouts for piece in plain(each.dimensions[chosen])]
    return Layout(tuple(first))


@function_rule("stack")
def stacked(call: Call) -> Layout:
    """Tensors that agree in all dimensions are stacked along a new one."""
    layouts, place = call.get(0, "tensors"), call.get(1, "dim", 0) % call.result.ndim
    first = list(layouts[0].dimensions)
    for other in layouts[1:]:
        first = [join_(each, again) for each, again in zip(first, other.dimensions, strict=True)]
    return Layout((*first[:place], fixed(len(layouts)), *first[place:]))


@function_rule("pad")
def padded(call: Call) -> Layout:
    """Constant entries are added before and after those of the last dimensions."""
    amounts, dimensions = list(call.get(1, "pad")), list(call.layout.dimensions)
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i : 2 * i + 2]
        if (before, after) == (0, 0):
            continue
        axis = plain(dimensions[-1 - i])
        if call.get(2, "mode", "constant") != "constant" or min(before, after) < 0:
            fix_(axis)
            dimensions[-1 - i] = fixed(call.result.shape[-1 - i])
        else:
            dimensions[-1 - i] = [*fresh(before), *axis, *fresh(after)]
    return Layout(tuple(dimensions))


@function_rule("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full")
def constant(call: Call) -> Layout:
    """All entries are equal, so that they can change places in any way."""
    return Layout(tuple(map(fresh, call.result.shape)))


@module_rule(nn.GLU)
@function_rule("glu")
def gated(call: Call) -> Layout:
    """One half of the entries along a dimension is multiplied by a function of the other half."""
    chosen = call.module.dim if call.module else call.get(1, "dim", -1)
    half = call.layout.shape[chosen] // 2
    left, right = (narrow(call.layout, chosen, start, start + half) for start in (0, half))
    return Layout(tuple(join_(a, b) for a, b in zip(left.dimensions, right.dimensions, strict=True)))


@module_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@function_rule("interpolate")
def resized(call: Call) -> Layout:
    """Channels remain separate; the other dimensions change size."""
    first, second, *others = call.layout.dimensions
    for dimension in others:
        stay_(dimension)
    return Layout((first, second, *map(fixed, call.result.shape[2:])))
