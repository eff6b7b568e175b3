"""The file of a split: the index sets of all clients in one ``.npz``, with a fingerprint of the labels."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("train", "validation", "test")
KEYS = (*(f"{part}_{array}" for part in PARTS for array in ("indices", "offsets")), "labels_sha256")


def fingerprint(labels: NDArray[np.int64]) -> str:
    """Return the SHA-256 of the labels, or of other integers that tell data apart, as little-endian 64-bit numbers."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def write_archive(path: Path, arrays: Mapping[str, NDArray[np.int64]], labels: NDArray[np.int64]) -> None:
    """Write the file completely or not at all.

    Parameters
    ----------
    arrays
        One array for each key except the fingerprint's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{token_hex(4)}.npz")
    with temporary.open("xb") as file:
        try:
            np.savez(file, **arrays, labels_sha256=np.array(fingerprint(labels)))  # type: ignore[arg-type]
            file.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_archive(path: Path, labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Read a file and check all of its content.

    Raises
    ------
    ValueError
        If the file is damaged, its sets are not valid or overlap, or it belongs to other labels.
    OSError
        If the file does not exist.
    """
    content = _content(path)
    if set(content) != set(KEYS):
        raise ValueError(
            f"{path} holds {', '.join(sorted(content)) or 'nothing'} and must hold {', '.join(KEYS)}; save it again"
        )
    arrays = {key: content[key] for key in KEYS[:-1]}
    for key, array in arrays.items():
        if array.dtype != np.int64 or array.ndim != 1:
            raise ValueError(
                f"{path}: {key} has type {array.dtype} and {array.ndim} dimensions and must have int64 and 1; save it "
                "again"
            )
    if str(content["labels_sha256"]) != fingerprint(labels):
        raise ValueError(
            f"{path} was saved for other labels than these {len(labels)}; use the data and settings it was saved with"
        )
    _check_sets(path, arrays, len(labels))
    return arrays


def _content(path: Path) -> dict[str, NDArray[Any]]:
    check_is_file(path)
    try:
        # np.load leaves a file that it opened and cannot read open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return dict(file.items())
    except Exception as error:  # a damaged file may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a complete .npz file of plain arrays ({reason}); save it again") from error


def check_is_file(path: Path) -> None:
    """Check that a path is a file, as a pipe may have no writer, and a device has no end.

    Raises
    ------
    OSError
        If it is not, or does not exist.
    """
    if not path.is_file():
        kind = "exists, but is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"path = '{path}' {kind}; correct the path")


def _check_sets(path: Path, arrays: Mapping[str, NDArray[np.int64]], n: int) -> None:
    lengths = {part: len(arrays[f"{part}_offsets"]) for part in PARTS}
    if len(set(lengths.values())) > 1 or lengths["train"] < 2:
        raise ValueError(
            f"{path} has offsets of lengths {lengths}; they must be equal, one more than clients; save it again"
        )
    for part in PARTS:
        indices, offsets = arrays[f"{part}_indices"], arrays[f"{part}_offsets"]
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(indices):
            raise ValueError(
                f"{path}: {part}_offsets must rise from 0 to {len(indices)}, the size of {part}_indices; save it again"
            )
        if len(indices) and not (indices.min() >= 0 and indices.max() < n):
            raise ValueError(
                f"{path}: {part}_indices are from {indices.min()} to {indices.max()} and must be from 0 to {n - 1}; "
                "save it again"
            )
    for part in ("train", "test"):
        sizes = np.diff(arrays[f"{part}_offsets"])
        if not sizes.all():
            raise ValueError(
                f"{path} gives client {sizes.argmin()} no {part} example; each must have one; save it again"
            )
    # Several clients may hold the same example, but none is tested on what another trains on.
    uses = np.bincount(np.concatenate([np.unique(arrays[f"{part}_indices"]) for part in PARTS]), minlength=n)
    if uses.max() > 1:
        raise ValueError(
            f"{path} has example {uses.argmax()} in {uses.max()} parts; train, validation and test must not overlap; "
            "save it again"
        )
