"""Groups of layers to measure: each layer, all of them, growing sets, windows, or any others."""

from collections.abc import Mapping, Sequence
from itertools import chain

from fedsim.analysis.mixing.names import ADAPTERS, KINDS, growing_name, is_kind, window_name
from fedsim.models.adapters import adapted_layers
from fedsim.models.layers import Layers
from fedsim.seeds import rng

Named = Mapping[str, str | tuple[str, ...]]
Groups = str | Named | Sequence[str | Named]


def groups_of_texts(texts: Sequence[str]) -> list[str | Named]:
    """Return groups as `named_groups` takes them: a text that is not a kind of groups is a layer expression."""
    return [text if is_kind(text) else {text: text} for text in texts]


def named_groups(layers: Layers, groups: Groups, seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Return the layers of each group, by the name that it has in the result.

    Parameters
    ----------
    groups
        One of these, or a list of them:

        - ``layers``: each layer alone, named by its module path, without the weights below adapters;
        - ``adapters``: what was added to each layer with an adapter, both factors of LoRA, named by the layer's path;
        - ``full``: all layers together;
        - ``cumulative-shallow``: the first k layers for each k, named ``shallow:k``;
        - ``cumulative-deep``: the last k layers, ``deep:k``;
        - ``cumulative-random``: the first k of a random order, ``random:k``;
        - ``cumulative-adapters``: the adapters of the first k layers that have one, ``adapters:k``;
        - ``windows:k``: each k consecutive layers, named ``windows:k:`` and the first layer;
        - a dict from names to expressions of the layer language, or to tuples of layers.
    seed
        Seed of the random order.

    Raises
    ------
    TypeError
        If ``groups`` is of another kind, or a layer expression is not text.
    ValueError
        If there is no group, one is none of these, matches nothing or names a layer that is not there, or two different
        groups have one name.
    """
    if not isinstance(groups, str | Mapping | Sequence):
        raise TypeError(f"groups = {groups!r} must be 'layers', a dict such as {{'top': 'last:2'}}, or a list of these")
    if not groups:
        raise ValueError("groups is empty; give at least one, such as 'layers'")
    named: dict[str, tuple[str, ...]] = {}
    for item in [groups] if isinstance(groups, str | Mapping) else groups:
        for name, members in _expand(layers, item, seed).items():
            if set(named.setdefault(name, members)) != set(members):
                raise ValueError(f"two different groups are called {name!r}; rename one of them")
    return named


def _expand(layers: Layers, item: str | Named, seed: int) -> dict[str, tuple[str, ...]]:
    names = layers.names
    if isinstance(item, Mapping):
        for name, expression in item.items():
            if not isinstance(expression, str | tuple):
                raise TypeError(
                    f"group {name!r} is {expression!r}; give a layer expression, such as {' | '.join(names[:2])!r}"
                )
        named = {name: x if isinstance(x, tuple) else layers.group(x).layers for name, x in item.items()}
        for name, members in named.items():
            if unknown := [member for member in members if member not in names]:
                raise ValueError(
                    f"group {name!r} has {unknown[0]!r}, which is no layer that trains; layers are: {', '.join(names)}"
                )
        return named
    counts = range(1, len(names) + 1)
    if item in (ADAPTERS, f"cumulative-{ADAPTERS}"):
        return _of_adapters(names, item)
    if item == "layers":
        # The weights below adapters, where the server changes them, are those of all clients.
        held = {f"{path}.base_layer" for path in adapted_layers(names)}
        return {name: (name,) for name in names if name not in held}
    if item == "full":
        return {"full": names}
    shuffled = [names[position] for position in rng(seed, "cumulative random").permutation(len(names))]
    for kind, order in {"shallow": names, "deep": names[::-1], "random": shuffled}.items():
        if item == f"cumulative-{kind}":
            place = {name: position for position, name in enumerate(order)}
            return {growing_name(kind, k): tuple(name for name in names if place[name] < k) for k in counts}
    if is_kind(item):
        size = int(item.partition(":")[2])
        if not 1 <= size <= len(names):
            raise ValueError(f"groups has {item!r}; a window must have from 1 to {len(names)} layers of this model")
        starts = range(len(names) - size + 1)
        return {window_name(size, names[start]): names[start : start + size] for start in starts}
    raise ValueError(
        f"groups has {item!r}; it must be one of {', '.join(KINDS)}, or a dict such as {{'top': 'last:2'}}"
    )


def _of_adapters(names: Sequence[str], item: str) -> dict[str, tuple[str, ...]]:
    adapted = adapted_layers(names)
    if not adapted:
        raise ValueError(
            f"groups has {item!r}, and no adapter trains in this model; add [model.adapter] kind = 'lora' "
            "(--set model.adapter.kind=lora), or use groups = ['layers']"
        )
    if item == ADAPTERS:
        return adapted
    added = list(adapted.values())
    return {growing_name(ADAPTERS, k): tuple(chain(*added[:k])) for k in range(1, len(added) + 1)}
