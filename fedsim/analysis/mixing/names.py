"""Names of the average, of paths and of groups of layers in tables; nothing heavy is imported here."""

from typing import Final, Literal

# Where ``base`` or ``other`` is this, it is the weighted average of all states.
AVERAGE = -1
# Where two models are mixed with each other, unless other places are asked for.
PAIR_TS = (0.0, 0.5, 1.0)
# How models with LoRA are mixed: factor by factor, as any other layers; by the factors' products; or factor by factor
# after the other model's factors have been turned into the frame of the base's.
PathName = Literal["factors", "product", "aligned"]
FACTORS: Final = "factors"
# Running statistics of a mixed layer: mixed too, the model's own, or recomputed.
Normalisation = Literal["interpolate", "base", "recompute"]
# Groups of the first, the last and random k layers, and of the first k layers with adapters, which are named
# ``shallow:k`` and so on.
GROWING = ("shallow", "deep", "random", "adapters")
ADAPTERS = "adapters"
# What `fedsim.analysis.mixing.groups.named_groups` takes besides expressions of the layer language.
KINDS = ("layers", ADAPTERS, "full", *(f"cumulative-{kind}" for kind in GROWING), "windows:k")


def is_kind(text: str) -> bool:
    """Return whether a text is one of `KINDS`, with a number for k."""
    kind, _, size = text.partition(":")
    return text in KINDS[:-1] or (kind == "windows" and size.isdigit())


def growing_name(kind: str, k: int) -> str:
    """Return the name of the k layers of one of `GROWING`."""
    return f"{kind}:{k}"


def window_name(k: int, first: str) -> str:
    """Return the name of k consecutive layers."""
    return f"windows:{k}:{first}"


def kind_of(group: str) -> str:
    """Return one of `GROWING`, or ``windows:k``, or nothing for any other group."""
    kind, _, rest = group.partition(":")
    size, _, first = rest.partition(":")
    if kind in GROWING and rest.isdigit():
        return kind
    return f"windows:{size}" if kind == "windows" and size.isdigit() and first else ""
