"""Data files that are no files, promise what they do not hold, or are packed in other ways: an error, and at once."""

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data import fingerprint as fingerprints
from fedsim.data import idx
from fedsim.data.arrays import arrays
from fedsim.data.fingerprint import fingerprint, names_in
from fedsim.data.idx import read_idx
from fedsim.data.leaf import leaf
from fedsim.data.pfllib import pfllib
from fedsim.data.shakespeare import shakespeare
from partitions.archive import read_archive
from partitions.matrix import matrix

RNG = np.random.default_rng(0)
CONTENT = {
    "train_inputs": RNG.random((20, 3), dtype=np.float32),
    "train_targets": np.arange(20) % 2,
    "test_inputs": RNG.random((4, 3), dtype=np.float32),
    "test_targets": np.arange(4) % 2,
}


def as_npy(values: Any) -> bytes:
    """Return an array as a file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def promising(*shape: int) -> bytes:
    """Return the beginning of an array's file with a header of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(100)


def pack(path: Path, method: int = zipfile.ZIP_STORED, **changed: bytes) -> Path:
    """Write an archive of arrays."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, values in CONTENT.items():
            archive.writestr(f"{name}.npy", changed.get(name) or as_npy(values))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_other_compressions_are_read(method: int, tmp_path: Path) -> None:
    data = arrays(path=str(pack(tmp_path / "mine.npz", method)))
    assert data.train.inputs.tolist() == CONTENT["train_inputs"].tolist()


@pytest.mark.parametrize("shape", [(2**31,), (2**50,), (2**70,), (2**40, 2**40), (-1,), (1,) * 70])
@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_a_header_that_promises_more_than_there_is_is_named(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    place = tmp_path / "mine.npz"
    if kind == "archive":
        pack(place, train_inputs=promising(*shape))
    else:
        place = tmp_path / "mine"
        place.mkdir()
        for name, values in CONTENT.items():
            np.save(place / f"{name}.npy", values)
        (place / "train_inputs.npy").write_bytes(promising(*shape))
    with pytest.raises((ValueError, MemoryError), match=r"mine(\.npz)?(: Unable to allocate| is damaged)"):
        arrays(path=str(place))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (8, 93, "compression method is not supported"),  # the method of a zip member: here Zstandard
        (8, 9, "compression method is not supported"),
        (6, 1, "is encrypted, password required"),  # its flags
    ],
)
def test_an_archive_that_python_cannot_unpack_is_named(place: int, value: int, message: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "mine.npz")
    content = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            struct.pack_into("<H", content, start + place + shift, value)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        arrays(path=str(path))


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("value", [np.float32(3), np.int64(1), np.array("a")])
def test_an_array_without_dimensions_is_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.npz.* (has shape|of shape) \(\)|make them alike|has the class"):
        arrays(path=str(pack(tmp_path / "mine.npz", **{name: as_npy(value)})))


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("content", [b"x", b"no array"])
def test_a_member_of_an_archive_that_is_no_array_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"mine\.npz is damaged or holds objects .*, at {name} \(it is no array\)"):
        arrays(path=str(pack(tmp_path / "mine.npz", **{name: content})))


def test_an_archive_larger_than_memory_is_refused_before_it_is_hashed_or_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(MemoryError, match=r"mine.npz needs 4,398,046,511,104 bytes of memory, and .* are free"):
        fingerprint(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "arrays": lambda path: arrays(path=str(path)),
    "fingerprint": fingerprint,
    "idx": lambda path: read_idx(path, 1),
    "shakespeare": lambda path: shakespeare(path=str(path)),
    "leaf": lambda path: (
        [(path.parent / each / "a.json").symlink_to(path) for each in ("train", "test")] and leaf(path=str(path.parent))
    ),
    "pfllib": lambda path: (
        [(path.parent / each / "0.npz").symlink_to(path) for each in ("train", "test")]
        and pfllib(path=str(path.parent))
    ),
    "split": lambda path: read_archive(path, np.zeros(3, dtype=np.int64)),
    "matrix": lambda path: matrix(np.zeros(3, dtype=np.int64), 2, RNG, path=str(path)),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
)
def test_pipes_devices_and_loops_of_links_are_not_read(
    reader: Callable[[Path], Any], make: Callable[[Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    make(tmp_path / "mine.csv")
    with pytest.raises((ValueError, OSError), match=r"not a file|no file|does not exist|symbolic links|is damaged"):
        reader(tmp_path / "mine.csv")


def test_a_folder_that_cannot_be_read_is_not_left_out_of_what_names_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    assert list(names_in(tmp_path)) == ["closed/"]
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        fingerprint(tmp_path)


def idx_bytes(values: list[int], count: int | None = None) -> bytes:
    """Return labels as an IDX file."""
    return struct.pack(">4BI", 0, 0, 8, 1, len(values) if count is None else count) + bytes(values)


def test_an_unpacked_file_must_have_the_checksum_of_its_archive(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.with_name("labels.gz").write_bytes(gzip.compress(idx_bytes([1, 2, 3])))
    path.write_bytes(idx_bytes([1, 2, 3]))
    assert read_idx(path, 1).tolist() == [1, 2, 3]
    path.write_bytes(idx_bytes([1, 6, 3]))
    with pytest.raises(ValueError, match=r"does not have the checksum of labels.gz next to it; remove it"):
        read_idx(path, 1)
    path.unlink()
    assert read_idx(path.with_name("labels.gz"), 1).tolist() == [1, 2, 3]


def test_an_idx_file_is_unpacked_only_as_far_as_its_header_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx_bytes([0] * 10**6, 3)))
    with pytest.raises(ValueError, match="holds at least 4 bytes of data, but its header promises 3"):
        read_idx(path, 1)

    def refuse(needed: int, what: str) -> None:
        raise MemoryError(f"{what} needs {needed}")

    monkeypatch.setattr(idx, "check_fits", refuse)
    with pytest.raises(MemoryError, match=r"labels.gz, by its header, needs 3"):
        read_idx(path, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.npy", as_npy(np.float64(3)), r"has float64 of shape \(\); it must have numbers, one row per client"),
        ("m.npy", as_npy(np.ones((2, 2, 2))), r"of shape \(2, 2, 2\)"),
        ("m.npy", as_npy(np.ones((2, 1), dtype=complex)), "has complex128"),
        ("m.npy", as_npy(np.array([["1"], ["2"]])), "has <U1"),
        ("m.npy", promising(2**45), "is not a matrix of numbers"),
        ("m.npy", b"", "is not a matrix of numbers"),
        ("m.csv", b"\xff\xfe", "is not a matrix of numbers"),
        ("m.csv", b"1,2\n3\n", "is not a matrix of numbers"),
    ],
)
def test_a_matrix_that_is_none_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        matrix(np.zeros(3, dtype=np.int64), 2, RNG, path=str(tmp_path / name))


def test_a_byte_order_mark_is_no_part_of_any_text(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf1\n2\n")
    assert len(matrix(np.zeros(6, dtype=np.int64), 2, RNG, path=str(tmp_path / "m.csv"))) == 2
    (tmp_path / "play.txt").write_bytes(b"\xef\xbb\xbfA:\r\n" + b"word " * 60 + b"\r\n\r\nB:\r\n" + b"other " * 60)
    assert set(fingerprints.fingerprint(tmp_path / "play.txt")) <= set("0123456789abcdef")
    assert shakespeare(path=str(tmp_path / "play.txt"), length=5).classes[:2] == ("newline", "space")
