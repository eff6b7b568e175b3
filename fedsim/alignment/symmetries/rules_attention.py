"""The effect of matrix products, attention and recurrent layers on the units of their inputs and weights."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.alignment.symmetries.layouts import (
    Dimension,
    Layout,
    Part,
    alone,
    broadcast_,
    fix_all_,
    join_,
    plain,
    size_of,
    split,
    stay_,
    still,
)
from fedsim.alignment.symmetries.rules import (
    Call,
    function_rule,
    module_rule,
    required,
    rule_of_function,
    rule_of_module,
)
from fedsim.alignment.symmetries.symbols import Piece, Pieces, UnknownError, fixed, fresh, length, name_role_
from fedsim.alignment.symmetries.unification import block_, fix_, unify_


@function_rule("matmul", "bmm", "mm")
def product(call: Call) -> Layout:
    """Rows of one matrix are multiplied by columns of another."""
    return matrix_product(call.layout, required(call.get(1, "other", call.kwargs.get("mat2"))))


def matrix_product(a: Layout, b: Layout) -> Layout:
    """Return the layout of a product of matrices, or of stacks of them.

    Queries and keys are multiplied head by head, so that the units in a head change places in both together.
    """
    if min(len(a.dimensions), len(b.dimensions)) < 2:
        raise UnknownError
    (*batch, rows, inner), (*others, inner_too, columns) = a.dimensions, b.dimensions
    if _are_heads(inner, batch) and _are_heads(inner_too, others):
        name_role_(inner.split.axis, "qk")  # type: ignore[union-attr]
        name_role_(inner_too.split.axis, "qk")  # type: ignore[union-attr]
        join_(inner, inner_too)
    else:
        unify_(plain(inner), plain(inner_too))
        if _is_one_head(inner, batch):
            name_role_(plain(inner), "qk")
    if _are_heads(columns, others):
        name_role_(columns.split.axis, "vo")  # type: ignore[union-attr]
    elif _is_one_head(columns, others):
        name_role_(plain(columns), "vo")
    stack = broadcast_([Layout(tuple(map(alone, batch))), Layout(tuple(others))])
    return Layout((*stack.dimensions, rows, columns))


def _are_heads(inner: Dimension, batch: Sequence[Dimension]) -> bool:
    """Whether a dimension holds the units of each head, and the one before the matrices holds the heads."""
    return isinstance(inner, Part) and batch[-1:] == [Part(inner.split, 0)] and len(inner.split.sizes) == 2


def _is_one_head(inner: Dimension, batch: Sequence[Dimension]) -> bool:
    """Whether a dimension may hold the units of a single head, as the one before the matrices has one entry."""
    return not isinstance(inner, Part) and len(batch) > 1 and size_of(batch[-1]) == 1


@function_rule("scaled_dot_product_attention")
def attention(call: Call) -> Layout:
    """Each position gets a mean of the values at all positions, weighted by queries and keys."""
    query, key, value = (required(call.get(i, name)) for i, name in enumerate(("query", "key", "value")))
    mask = call.get(3, "attn_mask")
    if call.kwargs.get("enable_gqa"):
        raise UnknownError
    for each in (query, key, value):
        stay_(each.dimensions[-2])
    *batch, rows, inner = key.dimensions
    scores = matrix_product(query, Layout((*batch, inner, rows)))
    if mask is not None:
        scores = broadcast_([scores, required(mask)])
    return matrix_product(scores, value)


@module_rule(nn.MultiheadAttention)
def multihead_attention(call: Call) -> Any:
    """Attention with its projections: heads change places, and units within each head."""
    module: nn.MultiheadAttention = call.module
    inputs = [required(call.get(i, name)) for i, name in enumerate(("query", "key", "value"))]
    masks = [each for each in (call.get(3, "key_padding_mask"), call.get(5, "attn_mask")) if each is not None]
    if module.bias_k is not None or module.add_zero_attn or any(len(each.dimensions) != 3 for each in inputs):
        raise UnknownError
    for each in (Layout(x.dimensions[:2]) for x in inputs):
        fix_all_(each)
    width, heads = module.embed_dim, fresh(module.num_heads)
    qk, vo = fresh(width), fresh(width)
    for axis, role in ((qk, "qk"), (vo, "vo")):
        block_(axis, heads)
        call.write_(axis, role)
    _bind_projections(call, [plain(each.dimensions[2]) for each in inputs], [qk, qk, vo])
    rows, columns = map(plain, required(call.weights("out_proj.weight")).dimensions)
    unify_(columns, vo)
    call.write_(rows, name="out_proj")
    if module.out_proj.bias is not None:
        unify_(plain(required(call.weights("out_proj.bias")).dimensions[0]), rows)
    for mask in masks:
        fix_all_(mask)
    # Arguments or results for each head identify the heads by their positions.
    if any(len(mask.dimensions) > 2 for mask in masks) or not call.get(6, "average_attn_weights", True):
        fix_(heads)
    scores = None if call.result is None else call.result[1]
    return Layout((*inputs[0].dimensions[:2], rows)), scores if scores is None else still(scores.shape)


def _bind_projections(call: Call, inputs: Sequence[Pieces], outputs: Sequence[Pieces]) -> None:
    """Bind the projections to queries, keys and values, which are in one tensor if their inputs are equally wide."""
    if call.module.in_proj_weight is not None:
        rows, columns = map(plain, required(call.weights("in_proj_weight")).dimensions)
        unify_(rows, [piece for axis in outputs for piece in axis])
        for axis in inputs:
            unify_(columns, axis)
    else:
        for name, axis, output in zip("qkv", inputs, outputs, strict=True):
            rows, columns = map(plain, required(call.weights(f"{name}_proj_weight")).dimensions)
            unify_(rows, output)
            unify_(columns, axis)
    if call.module.in_proj_bias is not None:
        bias = plain(required(call.weights("in_proj_bias")).dimensions[0])
        unify_(bias, [piece for axis in outputs for piece in axis])


@module_rule(nn.TransformerEncoderLayer)
def encoder_layer(call: Call) -> Layout:
    """Attention and a hidden layer, each with a residual connection and a norm before or after."""
    x, activation = call.layout, call.module.activation
    known = rule_of_module(activation) if isinstance(activation, nn.Module) else rule_of_function(activation)
    if known is None or any(len(mask.dimensions) > 2 for mask in call.layouts[1:]):
        raise UnknownError
    for mask in call.layouts[1:]:
        fix_all_(mask)
    attended, _ = call.inside("self_attn", x, x, x)
    x = call.inside("norm1", broadcast_([x, attended]))
    return call.inside("norm2", broadcast_([x, call.inside("linear2", call.inside("linear1", x))]))


@module_rule(nn.TransformerEncoder)
def encoder(call: Call) -> Layout:
    """Layers follow each other."""
    x, *masks = call.layouts
    for i in range(len(call.module.layers)):
        x = call.inside(f"layers.{i}", x, *masks)
    return x if call.module.norm is None else call.inside("norm", x)


@module_rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(call: Call) -> Any:
    """Each layer's hidden units are its inputs at the next position; an LSTM has four rows of weights for each."""
    module: nn.RNNBase = call.module
    if module.proj_size or len(call.layouts) != 1 or len(call.layout.dimensions) != 3:
        raise UnknownError
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    fix_all_(Layout(call.layout.dimensions[:2]))
    axis, states = plain(call.layout.dimensions[2]), list[Piece]()
    for layer in range(module.num_layers):
        ends = ("", "_reverse") if module.bidirectional else ("",)
        outputs = [_recurrent(call, axis, gates, f"l{layer}{end}") for end in ends]
        axis = [piece for each in outputs for piece in each]
        states += axis
    # The last states of all layers and directions follow each other.
    first, last = split(states, [length(states) // module.hidden_size, module.hidden_size])
    state = Layout((first, fixed(call.result[0].shape[0 if module.batch_first else 1]), last))
    out = Layout((*call.layout.dimensions[:2], axis))
    return out, (state, state) if module.mode == "LSTM" else state


def _recurrent(call: Call, inputs: Pieces, gates: int, suffix: str) -> Pieces:
    """Return the axis of the hidden units of one layer in one direction."""
    hidden = fresh(call.module.hidden_size)
    several = call.module.num_layers * (1 + call.module.bidirectional) > 1
    call.write_(hidden, suffix if several else "")
    for kind, columns in (("ih", inputs), ("hh", hidden)):
        weight = required(call.weights(f"weight_{kind}_{suffix}"))
        unify_(plain(weight.dimensions[0]), list(hidden) * gates)
        unify_(plain(weight.dimensions[1]), columns)
        if call.module.bias:
            unify_(plain(required(call.weights(f"bias_{kind}_{suffix}")).dimensions[0]), list(hidden) * gates)
    return hidden
