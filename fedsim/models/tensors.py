"""Tensors apart from any model: those in nested values, whether two are the same, and the names of their types."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Floating-point types that torch compares as they are.
COMPARED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in tuples, lists and dicts of any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and values; also those that torch cannot compare."""
    if one.dtype != other.dtype:
        return False
    if one.dtype in COMPARED:
        return torch.equal(one, other)
    wide = torch.complex128 if one.is_complex() else torch.float64 if one.is_floating_point() else one.dtype
    return torch.equal(one.to(wide), other.to(wide))


def name_type(dtype: torch.dtype) -> str:
    """Return a type as a text: ``float32``."""
    return str(dtype).removeprefix("torch.")
