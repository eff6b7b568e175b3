"""Named parameters: a model, or a part of one, as a dict from state-dict keys to tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.models.entries import entries_of
from fedsim.models.frozen import frozen_keys, frozen_of
from fedsim.models.tensors import is_same

Params = dict[str, Tensor]
# Tensors by name, client, ..., in any number of levels.
Tree = Mapping[Any, "Tensor | Tree"]


def state_of(model: nn.Module, *, keep_vars: bool = False) -> Params:
    """Return a model's state: its state dict without frozen tensors, and with a tied tensor only under its first name.

    The tensors are those of the model, not copies; with ``keep_vars`` the parameters themselves.
    """
    if (known := entries_of(model)) is not None:
        return dict(known) if keep_vars else {key: value.detach() for key, value in known.items()}
    first, frozen = first_keys(model), frozen_keys(model)
    entries = model.state_dict(keep_vars=keep_vars)
    return {key: value for key, value in entries.items() if first[key] == key and key not in frozen}


def under_all_names(model: nn.Module, params: Params) -> Params:
    """Return all entries of `state_of` as plain torch loads them: a tied tensor under each of its names.

    Further names hold copies, as files of safetensors have no shared memory. Frozen tensors are left out.
    """
    first_of = {key: first for key, first in first_keys(model).items() if first in params}
    return {key: params[first] if key == first else params[first].clone() for key, first in first_of.items()}


def under_first_names(model: nn.Module, params: Params) -> Params:
    """Return the entries of a state dict with a tied tensor only under its first name."""
    first = first_keys(model)
    return {key: value for key, value in params.items() if first.get(key, key) == key}


def load_state_(model: nn.Module, params: Params) -> None:
    """Load all entries of `state_of` into ``model``; frozen tensors stay as they are, also where ``params`` has them.

    Raises
    ------
    KeyError
        If an entry is missing.
    RuntimeError
        If a shape does not match.
    """
    known = entries_of(model)
    if known is not None and all(params[key].shape == value.shape for key, value in known.items()):
        with torch.no_grad():
            for key, value in known.items():
                value.copy_(params[key])
        return
    frozen = frozen_keys(model)
    moving = {key: params[first] for key, first in first_keys(model).items() if key not in frozen}
    model.load_state_dict(moving, strict=False)


def fit_all(model: nn.Module, states: Sequence[Params], at_least: int = 1) -> list[Params]:
    """Apply `fit` to several states.

    Raises
    ------
    ValueError
        If there are too few states, or one does not match the model.
    """
    check_number(states, at_least)
    return [fit(model, state, f"state {number}") for number, state in enumerate(states)]


def check_number(states: Sequence[Params], at_least: int) -> None:
    """Check that there are enough states.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    if len(states) < at_least:
        number = "is 1 state" if len(states) else "are no states"
        raise ValueError(f"there {number}; this needs at least {at_least}")


def fit(model: nn.Module, params: Params, name: str) -> Params:
    """Return a state dict with each tensor of the model's state once, under its first name.

    Parameters
    ----------
    name
        Name of the state in errors.

    Raises
    ------
    ValueError
        If an entry is missing or unknown, has another shape than the model's, is frozen and has another value, or
        cannot be converted to the model's type.

    Notes
    -----
    Entries of another floating-point type are converted to the model's, as checkpoints are, with one exception: what
    would lose most of its digits, as float32 in a model of bfloat16.
    """
    like = state_of(model)
    missing, unknown = like.keys() - params.keys(), params.keys() - model.state_dict().keys()
    for verb, keys in (("lacks", missing), ("has", unknown)):
        if keys:
            raise ValueError(f"{name} {verb} the entry {min(keys)!r}; it must be a state dict of the model")
    for key, value in like.items():
        if params[key].shape != value.shape:
            shapes = f"{tuple(params[key].shape)} instead of {tuple(value.shape)}"
            raise ValueError(f"{name} has {key} of shape {shapes}; it must be a state dict of the model")
    for key, value in frozen_of(model).items():
        if key in params and not is_same(params[key].to(value), value):
            raise ValueError(
                f"{name} and the model differ in {key!r}, which is frozen; load it into the model, or let it require a "
                "gradient"
            )
    return {key: _converted(params[key], value, f"{name} has {key!r}") for key, value in like.items()}


def _converted(value: Tensor, like: Tensor, described: str) -> Tensor:
    """Return an entry in the type of the model's. Counters may come back from averaging as fractions."""
    if value.dtype == like.dtype:
        return value
    types = f"{described} of {value.dtype}; in the model it is {like.dtype}"
    is_other_kind = value.is_complex() != like.is_complex()
    if is_other_kind or (like.is_floating_point() and not value.is_floating_point()):
        raise ValueError(types)
    if like.is_floating_point() and like.itemsize < min(value.itemsize, 4):
        raise ValueError(f"{types}, which would lose most digits; convert the model, as by model.float(), or the state")
    return value.to(like.dtype)


def first_keys(model: nn.Module) -> dict[str, str]:
    """Return, for each key of the state dict, the first key of the same tensor: another one where it is tied."""
    seen: dict[int, str] = {}
    return {key: seen.setdefault(id(value), key) for key, value in model.state_dict(keep_vars=True).items()}


def combine(base: Params, part: Params) -> Params:
    """Return ``base`` with the entries of ``part`` in place of its own.

    Raises
    ------
    KeyError
        If ``part`` has an entry that ``base`` does not have.
    """
    if unknown := part.keys() - base.keys():
        raise KeyError(f"entries {sorted(unknown)} are not in the model that they should replace")
    return {key: part.get(key, value) for key, value in base.items()}


def flatten(tree: Tree, separator: str = "/") -> Params:
    """Return the tensors of a tree by their paths, such as ``models/3/conv.weight``, in the tree's order.

    Raises
    ------
    ValueError
        If two tensors have the same path.
    """
    flat: Params = {}
    for path, value in _entries(tree, separator):
        if path in flat:
            raise ValueError(f"two entries have the path {path!r}; keys must differ as text, without {separator!r}")
        flat[path] = value
    return flat


def unflatten(params: Params, separator: str = "/", levels: int | None = None) -> dict[str, Any]:
    """Return the tree of which `flatten` made paths; its keys are text, and it has no empty branches.

    Parameters
    ----------
    levels
        Number of separators, counted from the left, at which a path is split: 1 for a tree of models whose own keys
        may contain a separator. All if not given.

    Raises
    ------
    ValueError
        If a path leads to a tensor and is the beginning of another.
    """
    tree: dict[str, Any] = {}
    for path, value in params.items():
        *branches, last = path.split(separator, -1 if levels is None else levels)
        branch = tree
        for name in branches:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise ValueError(f"a beginning of the path {path!r} leads to a tensor; it must lead to a branch")
        if last in branch:
            raise ValueError(f"the path {path!r} leads to a tensor and to a branch; it must lead to one of them")
        branch[last] = value
    return tree


def moves(value: Tensor) -> bool:
    """Whether a tensor can be averaged and mixed: real and complex numbers can, integers and float8, a code, cannot."""
    return (value.is_floating_point() and value.dtype.itemsize > 1) or value.is_complex()


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one type are equal, of float8 too, which torch compares by its bits alone."""
    is_narrow = one.dtype.itemsize == 1 and one.dtype.is_floating_point
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if is_narrow else torch.equal(one, other)


def lerp(start: Params, end: Params, t: float) -> Params:
    """Return ``(1 - t) * start + t * end``; exact at 0 and at 1; other entries stay the start's."""
    return {key: (1 - t) * value + t * end[key] if moves(value) else value for key, value in start.items()}


def as_real(value: Tensor) -> Tensor:
    """Return a tensor with the real and imaginary parts of complex numbers along a new last dimension, as a view."""
    return torch.view_as_real(value) if value.is_complex() else value


def as_kind_of(value: Tensor, like: Tensor) -> Tensor:
    """Return what `as_real` made of a tensor of the dtype of another, in this dtype and on its device."""
    return torch.view_as_complex(value.contiguous()).to(like) if like.is_complex() else value.to(like)


def dense(params: Params) -> Params:
    """Return the same values without sparse tensors, which few operations take."""
    return {key: value.to_dense() if value.is_sparse else value for key, value in params.items()}


def laid_out_as(value: Tensor, leaf: Tensor) -> Tensor:
    """Return a value with the strides of a parameter of its shape, which fused steps take for granted."""
    if value.stride() == leaf.stride() or all(
        one == other or size == 1 for one, other, size in zip(value.stride(), leaf.stride(), value.shape, strict=True)
    ):
        return value
    return torch.empty_like(leaf).copy_(value)


def flat_copy(params: Params) -> Params:
    """Return a copy whose entries are, for each dtype, consecutive views of one buffer: a flat model."""
    copy = empty_flat(params)
    for key, value in params.items():
        copy[key].copy_(value.detach())
    return copy


def empty_flat(like: Params, dtypes: Mapping[str, torch.dtype] | None = None) -> Params:
    """Return a flat model with the keys, shapes and devices of another, uninitialised.

    Parameters
    ----------
    dtypes
        Type of each entry (default: as in the other model).
    """
    dtypes = {key: value.dtype for key, value in like.items()} if dtypes is None else dtypes
    kinds = {key: (dtypes[key], value.device) for key, value in like.items()}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for key, value in like.items():
        sizes[kinds[key]] = sizes.get(kinds[key], 0) + _padded(value.numel())
    buffers = {(dtype, device): _empty(size, dtype, device) for (dtype, device), size in sizes.items()}
    starts = dict.fromkeys(buffers, 0)
    flat = {}
    for key, value in like.items():
        buffer, start = buffers[kinds[key]], starts[kinds[key]]
        stop, starts[kinds[key]] = start + value.numel(), start + _padded(value.numel())
        if stop < starts[kinds[key]]:
            buffer[stop : starts[kinds[key]]] = 0
        flat[key] = buffer[start:stop].view(value.shape)
    return flat


def as_flat(params: Params) -> Tensor | None:
    """Return the buffer of a flat model with one dtype, from its first entry to its last, or None if it is not flat.

    Consecutive entries of a flat model are a flat model too. There may be padding between entries.
    """
    entries = [value for value in params.values() if value.numel()]
    if not entries:
        return None
    first, length = entries[0], 0
    for value in entries:
        expected = first.data_ptr() + length * first.element_size()
        if value.dtype != first.dtype or value.data_ptr() != expected or not value.is_contiguous():
            return None
        length += _padded(value.numel())
    length += entries[-1].numel() - _padded(entries[-1].numel())
    start = first.storage_offset()
    # Tensors that have the right addresses by chance have different storages.
    if (start + length) * first.element_size() > first.untyped_storage().nbytes():
        return None
    return first.as_strided((length,), (1,), start)


def is_finite(params: Params) -> bool:
    """Whether all real and complex values are finite."""
    floating = {key: value for key, value in params.items() if value.is_floating_point() or value.is_complex()}
    buffer = as_flat(floating)
    # The padding of a buffer may hold anything, so only the entries themselves show that a model is not finite.
    if buffer is not None and _is_finite(buffer):
        return True
    return all(map(_is_finite, floating.values()))


def _entries(tree: Tree, separator: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield str(key), value
        else:
            yield from ((f"{key}{separator}{path}", entry) for path, entry in _entries(value, separator))


def _is_finite(values: Tensor) -> bool:
    if values.dtype.itemsize == 1:  # torch has no sums of float8
        values = values.float()
    # A finite sum has finite terms and needs no memory; an overflow of finite terms is rare.
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _empty(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.empty(elements, dtype=dtype, device=device)
    # NumPy requests huge pages and torch does not: the first access to a large buffer is four times as fast.
    size = elements * dtype.itemsize
    memory = torch.from_numpy(np.empty(size + 64, dtype=np.uint8))
    start = -memory.data_ptr() % 64
    return memory[start : start + size].view(dtype)


def _padded(elements: int) -> int:
    """Round up to 16 elements: entries are aligned to 64 bytes, and start at the same element for every dtype."""
    return -(-elements // 16) * 16
