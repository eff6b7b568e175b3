"""Checkpoints for ``fedsim barriers``: right ones, those of other models, and damaged files."""

import io
import json
import struct
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save as save_safetensors

from benchmarks.soak.fuzz.inputs import Input

COMMAND = ("barriers", "a.file", "b.file", "--model", "mlp", "--data", "toy", "--examples", "8", "--out", "written")
SETTINGS = ("--set", "model.hidden=[4]", "--set", "data.examples=40")
KEYS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
SHAPES = ((4, 64), (4,), (4, 4), (4,))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


def checkpoints() -> SearchStrategy[Input]:
    """Two checkpoints, one of them right."""
    content = st.one_of(_saved(), _saved(), _safetensors(), _damaged(), st.binary(max_size=40))
    suffixes = st.sampled_from([".pt", ".safetensors", ".pth", ".npz", ""])
    return st.builds(_input, content, suffixes)


def _input(content: bytes, suffix: str) -> Input:
    first, second = "a.safetensors", f"b{suffix}"
    names = {"a.file": first, "b.file": second}
    return Input(tuple(names.get(each, each) for each in (*COMMAND, *SETTINGS)), {first: _right(), second: content})


@cache
def _right() -> bytes:
    return save_safetensors({key: torch.zeros(shape) for key, shape in zip(KEYS, SHAPES, strict=True)})


def _tensors() -> SearchStrategy[Any]:
    shapes = st.one_of(st.sampled_from(SHAPES), st.lists(st.integers(0, 5), max_size=3).map(tuple))
    plain = st.builds(lambda shape, dtype: torch.zeros(shape, dtype=dtype), shapes, st.sampled_from(DTYPES))
    odd = st.builds(
        lambda shape, change: change(torch.ones(shape)),
        shapes,
        st.sampled_from(
            [
                lambda each: each.to("meta"),
                lambda each: each.to_sparse(),
                lambda each: each * float("nan"),
                lambda each: each * float("inf"),
                lambda each: each.expand(2, *each.shape),
                lambda each: torch.nn.Parameter(each),
                lambda each: each.numpy(),
            ]
        ),
    )
    return st.one_of(plain, plain, plain, odd, st.sampled_from([None, 1, "x", [], {}]))


def _states() -> SearchStrategy[Any]:
    right = st.just({key: torch.ones(shape) for key, shape in zip(KEYS, SHAPES, strict=True)})
    wrong_keys = st.sampled_from([*KEYS, "module.fc1.weight", "fc3.weight", "", "x" * 500, "[f]c1", "\x00"])
    some = st.dictionaries(wrong_keys, _tensors(), max_size=5)
    changed = st.builds(lambda state, change: {**state, **change}, right, some)
    states = st.one_of(right, changed, changed, some)
    nested = st.builds(
        lambda names, state: _nested(names, state),
        st.lists(st.sampled_from(["state_dict", "model", "epoch", "ema", "x"]), max_size=3),
        states,
    )
    return st.one_of(states, nested, st.lists(_tensors(), max_size=2), _tensors())


def _nested(names: list[str], state: Any) -> Any:
    for name in names:
        state = {name: state, "epoch": 3}
    return state


def _saved() -> SearchStrategy[bytes]:
    """Files of ``torch.save``."""

    def save(state: Any, old: bool) -> bytes:
        file = io.BytesIO()
        try:
            torch.save(state, file, _use_new_zipfile_serialization=not old)
        except (RuntimeError, AttributeError, TypeError):  # which torch itself cannot save
            return b""
        return file.getvalue()

    return st.builds(save, _states(), st.booleans())


def _safetensors() -> SearchStrategy[bytes]:
    """Files with made-up headers."""
    numbers = st.one_of(st.integers(-2, 2000), st.sampled_from([2**31, 2**63 - 1, 2**64]))
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "X", 3]),
            "shape": st.one_of(st.sampled_from([list(shape) for shape in SHAPES]), st.lists(numbers, max_size=3)),
            "data_offsets": st.lists(numbers, min_size=1, max_size=3),
        }
    )
    header = st.dictionaries(st.sampled_from([*KEYS, "__metadata__"]), st.one_of(entry, entry, st.just({"a": "b"})))

    def write(header: Any, length: int | None, data: int) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)

    lengths = st.one_of(st.none(), st.none(), st.sampled_from([0, 1, 2**33, 2**63, 2**64 - 1]))
    return st.builds(write, header, lengths, st.integers(0, 1200))


def _damaged() -> SearchStrategy[bytes]:
    """Right files with a piece replaced, or without their end."""

    def damage(content: bytes, at: float, change: bytes, length: int, end: bool) -> bytes:
        start = int(at * len(content))
        return content[:start] if end else content[:start] + change + content[start + length :]

    whole = st.one_of(st.builds(_right), _saved())
    return st.builds(damage, whole, st.floats(0, 1), st.binary(max_size=4), st.integers(0, 8), st.booleans())
