"""Checkpoints that are damaged, hold no values, or are no files: one line, and no number out of them."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.saved import read_checkpoint

MODEL = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
STATE = MODEL.state_dict()


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint of the model."""
    return read_checkpoint(path, MODEL, "net")


def flip_where(path: Path, content: bytes) -> None:
    """Change one bit of what a file holds of this content."""
    whole = bytearray(path.read_bytes())
    place = whole.find(content)
    assert place > 0
    whole[place + len(content) // 2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("key", STATE)
def test_a_flipped_bit_of_a_file_of_torch_is_found_by_its_checksum(key: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt")[key].equal(STATE[key])
    flip_where(tmp_path / "a.pt", STATE[key].numpy().tobytes())
    with pytest.raises(ConfigError, match=r"a.pt is damaged or not a torch file \(BadZipFile: Bad CRC-32"):
        read(tmp_path / "a.pt")


def test_files_without_checksums_and_packed_ones_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for info in plain.infolist():
            info.CRC = 0
            with (tmp_path / "a.pt").open("rb") as file:
                file.seek(info.header_offset + 26)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                file.seek(name + extra, os.SEEK_CUR)
                packed.writestr(info.filename, file.read(info.file_size))
    for name in ("a.pt", "old.pt", "b.pt"):
        assert read(tmp_path / name)["0.weight"].equal(STATE["0.weight"])


@pytest.mark.parametrize(
    "content",
    [
        {key: value.to("meta") for key, value in STATE.items()},
        STATE | {"0.weight": STATE["0.weight"].to("meta")},
        {"model": STATE, "ema": {key: value.to("meta") for key, value in STATE.items()}},
    ],
)
def test_tensors_without_values_are_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"a.pt: '0.weight' is on the device 'meta', without values; save the model"):
        read(tmp_path / "a.pt")


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "cannot be read: it is a named pipe and not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is a device and not a file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    "huge": (lambda path: path.touch() or os.truncate(path, 2**42), "needs 4,398,046,511,104 bytes of memory"),
}


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.index.json"])
@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_what_is_no_file_or_larger_than_memory_is_not_read(
    make: Callable[[Path], Any], message: str, name: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name} {message}"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"weight_map": {"a": "a.index.json"}}', b'{"weight_map": 1e999}'])
def test_an_index_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a.index.json is damaged or no index of shards"):
        read(tmp_path / "a.index.json")


def test_an_index_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    (tmp_path / "a.index.json").write_bytes(b'\xef\xbb\xbf{"weight_map": {"0.weight": "a.safetensors"}}')
    assert read(tmp_path / "a.index.json")["0.weight"].equal(STATE["0.weight"])
