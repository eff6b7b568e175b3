"""The symmetries of transformers of Hugging Face, whose code no tracer follows: by the names of their weights."""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fedsim.alignment.symmetries.norms import Norm
from fedsim.alignment.symmetries.permutations import Axis, Segment, Spec, Symmetry, constants_of
from fedsim.alignment.symmetries.rotations import Rotation
from fedsim.models.frozen import frozen_keys
from fedsim.models.params import state_of

STREAM = "stream"
# The orders along the dimensions of each weight, and of a bias along its only one; "." stands for the block's name, and
# several orders follow each other along one dimension.
Table = Mapping[str, tuple[str | tuple[str, ...] | None, ...]]
LLAMA: Table = {
    r"model\.embed_tokens\.weight": (None, STREAM),
    r"(model\.layers\.\d+)\.self_attn\.([qkv])_proj\.\w+": (".:\\2", STREAM),
    r"(model\.layers\.\d+)\.self_attn\.o_proj\.\w+": (STREAM, ".:o"),
    r"(model\.layers\.\d+)\.mlp\.(gate|up)_proj\.\w+": (".:mlp", STREAM),
    r"(model\.layers\.\d+)\.mlp\.down_proj\.\w+": (STREAM, ".:mlp"),
    r"(model\.layers\.\d+)\.(input|post_attention)_layernorm\.weight|model\.norm\.weight": (STREAM,),
    r"lm_head\.weight|score\.weight": (None, STREAM),
}
GPT2: Table = {
    r"transformer\.w[tp]e\.weight": (None, STREAM),
    r"(transformer\.h\.\d+)\.attn\.c_attn\.weight": (STREAM, (".:qk", ".:qk", ".:vo")),
    r"(transformer\.h\.\d+)\.attn\.c_attn\.bias": ((".:qk", ".:qk", ".:vo"),),
    r"(transformer\.h\.\d+)\.attn\.c_proj\.weight": (".:vo", STREAM),
    r"(transformer\.h\.\d+)\.mlp\.c_fc\.weight": (STREAM, ".:mlp"),
    r"(transformer\.h\.\d+)\.mlp\.c_fc\.bias": (".:mlp",),
    r"(transformer\.h\.\d+)\.mlp\.c_proj\.weight": (".:mlp", STREAM),
    r"transformer\.h\.\d+\.(attn|mlp)\.c_proj\.bias|transformer\.(h\.\d+\.ln_[12]|ln_f)\.\w+": (STREAM,),
    r"lm_head\.weight|score\.weight": (None, STREAM),
}
BERT: Table = {
    r"bert\.embeddings\.\w+_embeddings\.weight": (None, STREAM),
    r"(bert\.encoder\.layer\.\d+)\.attention\.self\.(query|key)\.\w+": (".:qk", STREAM),
    r"(bert\.encoder\.layer\.\d+)\.attention\.self\.value\.\w+": (".:vo", STREAM),
    r"(bert\.encoder\.layer\.\d+)\.attention\.output\.dense\.\w+": (STREAM, ".:vo"),
    r"(bert\.encoder\.layer\.\d+)\.intermediate\.dense\.\w+": (".:mlp", STREAM),
    r"(bert\.encoder\.layer\.\d+)\.output\.dense\.\w+": (STREAM, ".:mlp"),
    r"bert\.(.*\.)?LayerNorm\.\w+": (STREAM,),
    r"bert\.pooler\.dense\.\w+": ("pooler", STREAM),
    r"classifier\.weight": (None, "pooler"),
}
VIT: Table = {
    r"vit\.embeddings\.(cls_token|position_embeddings)": (None, None, STREAM),
    r"vit\.embeddings\.patch_embeddings\.projection\.\w+": (STREAM, None, None, None),
    r"(vit\.layers\.\d+)\.attention\.[qk]_proj\.\w+": (".:qk", STREAM),
    r"(vit\.layers\.\d+)\.attention\.v_proj\.\w+": (".:vo", STREAM),
    r"(vit\.layers\.\d+)\.attention\.o_proj\.\w+": (STREAM, ".:vo"),
    r"(vit\.layers\.\d+)\.mlp\.fc1\.\w+": (".:mlp", STREAM),
    r"(vit\.layers\.\d+)\.mlp\.fc2\.\w+": (STREAM, ".:mlp"),
    r"vit\.(.*\.)?layernorm(_before|_after)?\.\w+": (STREAM,),
    r"classifier\.weight": (None, STREAM),
}
# What torch calls a weight that is computed from others.
PARAMETRISED = re.compile(r"parametrizations\.(\w+)\.original\d*$")
TABLES: dict[str, Table] = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT, "vit": VIT}
# The weights that read each norm of a model in which norms come before blocks.
READERS: dict[str, Mapping[str, str]] = {
    "llama": {
        r"(model\.layers\.\d+)\.input_layernorm\.weight": r"{}\.self_attn\.[qkv]_proj\.weight",
        r"(model\.layers\.\d+)\.post_attention_layernorm\.weight": r"{}\.mlp\.(gate|up)_proj\.weight",
        r"(model)\.norm\.weight": r"lm_head\.weight|score\.weight",
    },
    "gpt2": {
        r"(transformer\.h\.\d+)\.ln_1\.weight": r"{}\.attn\.c_attn\.weight",
        r"(transformer\.h\.\d+)\.ln_2\.weight": r"{}\.mlp\.c_fc\.weight",
        r"(transformer)\.ln_f\.weight": r"lm_head\.weight|score\.weight",
    },
    "vit": {
        r"(vit\.layers\.\d+)\.layernorm_before\.weight": r"{}\.attention\.[qkv]_proj\.weight",
        r"(vit\.layers\.\d+)\.layernorm_after\.weight": r"{}\.mlp\.fc1\.weight",
        r"(vit)\.layernorm\.weight": r"classifier\.weight",
    },
}


def is_known(model: nn.Module) -> bool:
    """Return whether the names of a model's weights say what its symmetries are."""
    return getattr(getattr(model, "config", None), "model_type", None) in TABLES


def heads_spec(model: nn.Module) -> Spec:
    """Return what the names of a known transformer's weights suggest as its symmetries, with rotations within heads.

    Grouped query heads share the rotation of their key head, and change places within their group. Rotary position
    embeddings leave of the rotations of queries and keys one phase per pair of units. Units that a frozen or a computed
    weight uses stay in place. Names say nothing about weights that no table has, nor about what is computed: what
    is suggested must be tested on the model.
    """
    kind, state = _kind(model), state_of(model)
    axes = {key: _axes(kind, key, value.shape) for key, value in state.items() if value.is_floating_point()}
    return Spec(tuple(_symmetries(model, axes, _immovable(model))), axes, constants=constants_of(model, axes))


def norms_of(model: nn.Module, spec: Spec) -> tuple[list[Norm], bool]:
    """Return the norms of the residual stream, none if their scales cannot move, and whether they centre it."""
    kind, found = _kind(model), []
    for pattern, readers in READERS.get(kind, {}).items():
        for key in spec.axes:
            if match := re.fullmatch(pattern, key):
                reading = [each for each in spec.axes if re.fullmatch(readers.format(re.escape(match[1])), each)]
                if not reading:  # the output embedding is the input's
                    return [], False
                bias = key.removesuffix("weight") + "bias"
                places = tuple((each, _dimension(spec, each)) for each in reading)
                found.append(Norm(key, bias if bias in spec.axes else None, places))
    return found, kind != "llama"


def _kind(model: Any) -> str:
    return str(model.config.model_type)


def _immovable(model: nn.Module) -> set[str]:
    """Return the orders that frozen and computed weights follow, which nothing can permute."""
    kind, frozen, found = _kind(model), frozen_keys(model), set[str]()
    for key, value in model.state_dict().items():
        name = PARAMETRISED.sub(r"\1", key)
        if key in frozen or name != key:
            found |= {each.order for axis in _axes(kind, name, value.shape) for each in axis if each.order}
    return found


def _dimension(spec: Spec, key: str) -> int:
    return next(place for place, axis in enumerate(spec.axes[key]) if axis[0].order == STREAM)


def _axes(kind: str, key: str, shape: Sequence[int]) -> tuple[Axis, ...]:
    for pattern, roles in TABLES[kind].items():
        if match := re.fullmatch(pattern, key):
            return tuple(_axis(match, role, size) for role, size in zip(roles, shape, strict=False))
    return tuple((Segment(size),) for size in shape)


def _axis(match: re.Match[str], roles: str | tuple[str, ...] | None, size: int) -> Axis:
    orders = (roles,) if roles is None or isinstance(roles, str) else roles
    named = [each if each is None or each[0] != "." else match.expand("\\1" + each[1:]) for each in orders]
    return tuple(Segment(size // len(named), name) for name in named)


def _symmetries(model: Any, axes: Mapping[str, tuple[Axis, ...]], immovable: Container[str]) -> Iterator[Symmetry]:
    """Yield the symmetries all of whose orders can be permuted."""
    sizes = {each.order: each.size for own in axes.values() for axis in own for each in axis if each.order}
    heads, done = int(model.config.num_attention_heads), set[str]()
    for order in sizes:
        block, _, role = order.rpartition(":")
        roles = next((each for each in (("qk", "vo"), tuple("qkvo")) if role in each), ())
        together = [f"{block}:{each}" for each in roles] or [order]
        if together[0] in done or any(each not in sizes or each in immovable for each in together):
            continue
        done.add(together[0])
        widths = {each: sizes[each] // heads for each in together}
        if len(together) == 1:
            yield Symmetry(sizes[order], {order: 1})
        elif len(together) == 2:
            yield Symmetry(heads, widths, tuple(Rotation("orthogonal", {name: 1}) for name in widths))
        else:
            yield _grouped(together, sizes, int(model.config.num_key_value_heads), heads)


def _grouped(orders: Sequence[str], sizes: Mapping[str, int], key_heads: int, heads: int) -> Symmetry:
    q, k, v, o = orders
    group = heads // key_heads
    rotations = (Rotation("phases", {k: 1, q: group}), Rotation("orthogonal", {v: 1, o: group}))
    return Symmetry(key_heads, {name: sizes[name] // key_heads for name in orders}, rotations)
