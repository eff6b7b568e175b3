"""Files of data: arrays, images in folders, LEAF's JSON and saved partitions, right ones and damaged ones."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from benchmarks.soak.fuzz.experiments import FILE, RIGHT
from benchmarks.soak.fuzz.inputs import Input, Make

ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")
LARGEST = 2**62  # of a size in a header: more than any machine holds
DAMAGES = ("none", "none", "cut", "change")


def data_files() -> SearchStrategy[Input]:
    """Dry runs of experiments that read files."""
    return st.one_of(_arrays(), _images(), _leaf(), _partitions())


def _dry_run(data: dict[str, Any], files: dict[str, bytes], made: dict[str, Make], **more: Any) -> Input:
    settings = {**RIGHT, "data": data, **more}
    return Input(("run", FILE, "--dry-run"), {FILE: tomli_w.dumps(settings).encode(), **files}, made)


def _damaged(content: bytes, how: str, at: float, change: bytes) -> bytes:
    start = int(at * len(content))
    return {
        "none": content,
        "cut": content[:start],
        "change": content[:start] + change + content[start + len(change) :],
    }[how]


def damaged(contents: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Files, some of which are damaged."""
    return st.builds(_damaged, contents, st.sampled_from(DAMAGES), st.floats(0, 1), st.binary(min_size=1, max_size=4))


def _array() -> SearchStrategy[np.ndarray]:
    shapes = st.one_of(
        st.sampled_from([(30, 1, 4, 4), (30, 4, 4), (30,), (30, 5), (30, 4, 4, 1), (), (0,), (30, 0), (29,)]),
        st.lists(st.integers(0, 4), max_size=4).map(tuple),
    )
    dtypes = st.sampled_from(["f4", "u1", "i8", "f8", "f2", "?", "c8", "U3", "M8[s]", "V4", "S2"])
    makers = st.sampled_from([np.zeros, np.ones])
    plain = st.builds(lambda make, shape, dtype: make(shape, dtype), makers, shapes, dtypes)
    labels = st.builds(lambda n, classes: np.arange(n) % classes, st.integers(20, 31), st.integers(1, 4))
    inputs = st.builds(lambda n: np.random.default_rng(0).normal(size=(n, 1, 4, 4)).astype("f4"), st.integers(20, 31))
    odd = st.sampled_from(
        [np.array([np.nan] * 30), np.array([2**62] * 30), np.array([-100] * 30), np.array([0.5] * 30)]
    )
    return st.one_of(plain, labels, labels, inputs, inputs, odd)


def _npy(array: np.ndarray, header: int) -> bytes:
    """Return an array's file, or, with another number than 0, one whose header tells of that many numbers."""
    file = io.BytesIO()
    if header:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (header,)})
    else:
        np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _npz(arrays: dict[str, np.ndarray], compression: int, header: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for number, (name, array) in enumerate(arrays.items()):
            archive.writestr(f"{name}.npy", _npy(array, 0 if number else header))
    return file.getvalue()


def _right_arrays() -> dict[str, np.ndarray]:
    inputs = np.random.default_rng(0).normal(size=(40, 1, 4, 4)).astype("f4")
    targets = np.arange(40) % 3
    return dict(zip(ARRAYS, (inputs, targets, inputs, targets), strict=True))


def _arrays() -> SearchStrategy[Input]:
    changed = st.dictionaries(
        st.sampled_from([*ARRAYS, "train_id_writer", "x", "", "a/b", "[/x]"]), _array(), max_size=2
    )
    arrays = st.builds(lambda right, change: {**right, **change}, st.builds(_right_arrays), changed)
    some = st.one_of(arrays, arrays, changed)
    compression = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    headers = st.sampled_from([0, 0, 0, 0, 8 * 2**30, LARGEST])
    options = st.sampled_from([{}, {}, {"channels": "last"}, {"targets": "tokens"}, {"x": 1}])
    names = st.sampled_from(["data.npz", "data.npz", "data.safetensors", "data.bin", "data"])
    return st.builds(
        lambda content, name, more: _dry_run({"name": "arrays", "path": name, **more}, {name: content}, {}),
        damaged(st.builds(_npz, some, compression, headers)),
        names,
        options,
    )


def _image(size: tuple[int, int], mode: str, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


def _fifo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def _link_to(target: str) -> Make:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return make


MADE: dict[str, Make] = {
    "fifo": _fifo,
    "zeros": _link_to("/dev/zero"),
    "loop": _link_to("loop"),
    "none": _link_to("missing"),
}


def _images() -> SearchStrategy[Input]:
    sizes = st.sampled_from([(4, 4), (4, 4), (1, 1), (5, 3)])
    images = damaged(
        st.builds(_image, sizes, st.sampled_from(["RGB", "L", "1"]), st.sampled_from(["PNG", "BMP", "GIF"]))
    )
    folders = st.sampled_from(
        ["train/a", "train/b", "test/a", "test/b", "train", "s/train/a", "a", "train/[x]", "val/a"]
    )
    names = st.builds(
        "images/{}/{}{}".format, folders, st.integers(0, 5), st.sampled_from([".png", ".png", ".txt", ""])
    )
    right = {
        f"images/{part}/{label}/{i}.png": _image((4, 4), "L", "PNG")
        for part in ("train", "test")
        for label in "ab"
        for i in range(8)
    }
    files = st.builds(
        lambda few, base: {**(right if base else {}), **few}, st.dictionaries(names, images, max_size=4), st.booleans()
    )
    made = st.one_of(
        st.just({}),
        st.builds(lambda kind: {f"images/train/a/{kind}.png": MADE[kind]}, st.sampled_from(sorted(MADE))),
    )
    options = st.sampled_from([{}, {}, {"layout": "class"}, {"layout": "site/class"}, {"size": 4}, {"size": 10**9}])
    return st.builds(
        lambda files, made, more: _dry_run({"name": "image-folder", "path": "images", **more}, files, made),
        files,
        made,
        options,
    )


def _leaf() -> SearchStrategy[Input]:
    vectors = st.lists(st.sampled_from([0.0, 0.5, 1, "x", None]), max_size=4)
    examples = st.one_of(st.lists(vectors, max_size=3), st.just([[0.5] * 4] * 6), st.just(["some text"] * 6))
    labels = st.one_of(st.just([0, 1, 2] * 2), st.lists(st.sampled_from([0, 1, 2, "a", -1, None]), max_size=3))
    users = st.dictionaries(st.sampled_from("uvw"), st.fixed_dictionaries({"x": examples, "y": labels}), max_size=3)

    def write(data: dict[str, Any], missing: str, odd: Any) -> bytes:
        content = {
            "users": list(data),
            "num_samples": [len(each["y"]) for each in data.values()],
            "user_data": data,
        }
        content.pop(missing, None)
        return json.dumps(odd if odd is not None else content).encode()

    odd = st.sampled_from([None, None, None, None, [], 3, "x", {"users": 3, "user_data": [], "num_samples": None}])
    content = damaged(st.builds(write, users, st.sampled_from(["", "", "users", "user_data", "num_samples"]), odd))
    return st.builds(
        lambda train, test: _dry_run(
            {"name": "leaf", "path": "leaf"}, {"leaf/train/a.json": train, "leaf/test/a.json": test}, {}
        ),
        content,
        content,
    )


def _partitions() -> SearchStrategy[Input]:
    indices = st.lists(st.one_of(st.integers(-1, 70), st.just(2**62)), max_size=5)
    arrays = st.dictionaries(
        st.sampled_from(["0", "1", "2", "train", "client_0", "x"]),
        st.builds(lambda each, dtype: np.array(each, dtype), indices, st.sampled_from(["i8", "f8", "O"])).filter(
            lambda array: array.dtype != object
        ),
        max_size=4,
    )
    content = damaged(st.builds(_npz, arrays, st.just(zipfile.ZIP_STORED), st.sampled_from([0, 0, LARGEST])))
    return content.map(
        lambda file: _dry_run(
            {"name": "toy", "examples": 60}, {"split.npz": file}, {}, partition={"scheme": "saved", "path": "split.npz"}
        )
    )
