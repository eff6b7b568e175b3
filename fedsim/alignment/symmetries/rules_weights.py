"""The effect of layers with weights on the units of their inputs, and which entries of the weights belong to which."""

from collections.abc import Sequence

from torch import nn
from torch.nn import functional

from fedsim.alignment.symmetries.layouts import Dimension, Layout, fix_all_, join_, plain, stay_
from fedsim.alignment.symmetries.rules import FUNCTIONS, Call, function_rule, module_rule, required
from fedsim.alignment.symmetries.symbols import Pieces, UnknownError, fixed, fresh, length, resolve
from fedsim.alignment.symmetries.unification import block_, fix_, unify_
from fedsim.models.gates import Gate


def _bind(axis: Pieces, *layouts: Layout | None) -> None:
    """Let one-dimensional tensors move like an axis."""
    for each in layouts:
        if each is not None:
            unify_(axis, plain(each.dimensions[0]))


def _with(layout: Layout, place: int, dimension: Dimension) -> Layout:
    dimensions = list(layout.dimensions)
    dimensions[place] = dimension
    return Layout(tuple(dimensions))


def linear(x: Layout, weight: Layout, bias: Layout | None) -> Layout:
    """Map the last dimension by a matrix."""
    out, inputs = map(plain, weight.dimensions)
    unify_(plain(x.dimensions[-1]), inputs)
    _bind(out, bias)
    return _with(x, -1, out)


def convolution(x: Layout, weight: Layout, bias: Layout | None, groups: int, shape: Sequence[int]) -> Layout:
    """Map the channels in a window around each position; ``shape`` is that of the result."""
    out, inputs, *kernel = map(plain, weight.dimensions)
    for dimension in [*kernel, *x.dimensions[-len(kernel) :]]:
        stay_(dimension)
    place = -1 - len(kernel)
    channels = plain(x.dimensions[place])
    if groups == 1:
        unify_(channels, inputs)
    elif length(inputs) == 1:
        copies = length(out) // groups
        unify_([piece._replace(repeat=piece.repeat * copies) for piece in resolve(channels)], out)
    else:
        fix_(inputs)
        blocks = fresh(groups)
        unify_(channels, [piece._replace(repeat=length(inputs)) for piece in blocks])
        block_(out, blocks)
    _bind(out, bias)
    return Layout((*x.dimensions[:place], out, *map(fixed, shape[place + 1 :])))


def transposed_convolution(x: Layout, weight: Layout, bias: Layout | None, groups: int, shape: Sequence[int]) -> Layout:
    """Map the channels at each position to a window around it."""
    if groups != 1:
        raise UnknownError
    inputs, out, *kernel = weight.dimensions
    return convolution(x, Layout((out, inputs, *kernel)), bias, 1, shape)


def embedding(tokens: Layout, weight: Layout) -> Layout:
    """Look up a row for each token."""
    fix_all_(tokens)
    rows, columns = map(plain, weight.dimensions)
    fix_(rows)
    return Layout((*tokens.dimensions, columns))


def channel_norm(x: Layout, *tensors: Layout | None) -> Layout:
    """Treat each channel, the second dimension, separately, with its own entry of each tensor."""
    _bind(plain(x.dimensions[1]), *tensors)
    return x


def group_norm(x: Layout, groups: int, *tensors: Layout | None) -> Layout:
    """Treat groups of channels separately."""
    if groups > 1:
        block_(plain(x.dimensions[1]), fresh(groups))
    return channel_norm(x, *tensors)


def layer_norm(x: Layout, rank: int, *tensors: Layout | None) -> Layout:
    """Treat the last dimensions as one."""
    for tensor in tensors:
        if tensor is not None:
            for a, b in zip(x.dimensions[-rank:], tensor.dimensions, strict=True):
                join_(list(plain(a)), b)
    return Layout((*x.dimensions[:-rank], *map(plain, x.dimensions[-rank:])))


def _written(call: Call, dimension: int) -> tuple[Layout, Layout | None]:
    """Return a module's weight and bias, and note that it writes the weight's axis along one dimension."""
    weight = required(call.weights("weight"))
    call.write_(plain(weight.dimensions[dimension]))
    return weight, call.weights("bias") if hasattr(call.module, "bias") else None


@module_rule(nn.Linear)
def _linear(call: Call) -> Layout:
    return linear(call.layout, *_written(call, 0))


@module_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(call: Call) -> Layout:
    return convolution(call.layout, *_written(call, 0), call.module.groups, call.result.shape)


@module_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _transposed_convolution(call: Call) -> Layout:
    return transposed_convolution(call.layout, *_written(call, 1), call.module.groups, call.result.shape)


@module_rule(nn.Embedding)
def _embedding(call: Call) -> Layout:
    if call.module.max_norm is not None:
        raise UnknownError
    return embedding(call.layout, _written(call, 1)[0])


NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@module_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@module_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _channel_norm(call: Call) -> Layout:
    if len(call.layout.dimensions) == getattr(call.module, "_get_no_batch_dim", lambda: 0)():
        raise UnknownError  # a single example, without a batch dimension
    return channel_norm(call.layout, *map(call.weights, NORM_TENSORS))


@module_rule(nn.GroupNorm)
def _group_norm(call: Call) -> Layout:
    return group_norm(call.layout, call.module.num_groups, *map(call.weights, NORM_TENSORS[:2]))


@module_rule(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(call: Call) -> Layout:
    tensors = [call.weights(name) for name in NORM_TENSORS[:2] if hasattr(call.module, name)]
    return layer_norm(call.layout, len(call.module.normalized_shape), *tensors)


@module_rule(Gate)
def _gate(call: Call) -> Layout:
    """Features are mixed by a matrix that nothing permutes."""
    stay_(call.layout.dimensions[call.module.dimension])
    return call.layout


@module_rule(nn.PReLU)
@function_rule("prelu")
def _prelu(call: Call) -> Layout:
    weight = required(call.weights("weight") if call.module else call.get(1, "weight"))
    if len(call.layout.dimensions) < 2:
        raise UnknownError
    return call.layout if weight.shape == (1,) else channel_norm(call.layout, weight)


@function_rule("linear")
def _linear_function(call: Call) -> Layout:
    return linear(call.layout, required(call.get(1, "weight")), call.get(2, "bias"))


@function_rule("conv1d", "conv2d", "conv3d")
def _convolution_function(call: Call) -> Layout:
    weight, bias, groups = required(call.get(1, "weight")), call.get(2, "bias"), call.get(6, "groups", 1)
    return convolution(call.layout, weight, bias, groups, call.result.shape)


@function_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution_function(call: Call) -> Layout:
    weight, bias, groups = required(call.get(1, "weight")), call.get(2, "bias"), call.get(6, "groups", 1)
    return transposed_convolution(call.layout, weight, bias, groups, call.result.shape)


@function_rule("batch_norm", "instance_norm")
def _channel_norm_function(call: Call) -> Layout:
    return channel_norm(*call.layouts)


@function_rule("group_norm")
def _group_norm_function(call: Call) -> Layout:
    return group_norm(call.layout, call.get(1, "num_groups"), *call.layouts[1:])


@function_rule("layer_norm", "rms_norm")
def _layer_norm_function(call: Call) -> Layout:
    return layer_norm(call.layout, len(call.get(1, "normalized_shape")), *call.layouts[1:])


def _embedding_function(call: Call) -> Layout:
    if call.get(3, "max_norm") is not None:
        raise UnknownError
    return embedding(call.layout, required(call.get(1, "weight")))


# torch's function of the same name takes its arguments in another order.
FUNCTIONS[functional.embedding] = _embedding_function
