"""The cache of decoded images: what is damaged is not used, whatever is wrong with it, and is decoded again."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data import image_cache
from fedsim.data.image_cache import MANIFEST
from fedsim.data.image_folder import image_folder
from fedsim.data.places import cache_folder


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of 20 images of noise each, in both splits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(20):
                Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return tmp_path / "images"


def the_cache() -> Path:
    """Return the folder of the only cache."""
    [folder] = (path for path in (cache_folder() / "images").iterdir() if path.is_dir())
    return folder


def read(images: Path) -> list[Any]:
    """Return all that is read."""
    data = image_folder(path=str(images))
    return [data.train.inputs.tolist(), data.test.inputs.tolist(), data.train.targets.tolist(), data.mean, data.std]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, as a disk may do."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flip": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "delete": Path.unlink,
}
FILES = ("train.npy", "test.npy", "train_targets.npy", "test_targets.npy", "statistics.json", MANIFEST)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_found_and_the_images_are_decoded_again(
    file: str, damage: Callable[[Path], Any], images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read(images)
    damage(the_cache() / file)
    caplog.clear()
    assert read(images) == expected
    [line] = caplog.messages
    assert ("has no manifest" if damage is Path.unlink and file == MANIFEST else "is damaged") in line
    assert line.endswith(f"decoding 80 images of {images} again")
    assert read(images) == expected
    assert len(caplog.messages) == 1


def test_swapped_files_and_what_else_is_in_the_folder_are_damage(images: Path) -> None:
    expected = read(images)
    folder = the_cache()
    train, test = (folder / f"{part}.npy" for part in ("train", "test"))
    train.rename(folder / "other")
    test.rename(train)
    (folder / "other").rename(test)
    assert read(images) == expected
    (the_cache() / MANIFEST).write_text(json.dumps([1]))
    assert read(images) == expected


def test_pieces_are_hashed_apart(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "PIECE", 1000)
    expected = read(images)
    assert len(json.loads((the_cache() / MANIFEST).read_text())["train.npy"]) == 4
    flip(the_cache() / "train.npy")
    assert read(images) == expected


def test_a_whole_cache_is_used_where_nothing_can_be_written(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(images)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(image_cache, "FileLock", refuse)
    monkeypatch.setattr(image_cache, "_checked", set())
    assert read(images) == expected
    flip(the_cache() / "train.npy")
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\); set \$XDG_CACHE_HOME"):
        read(images)


def test_a_full_disk_is_named_and_leaves_nothing(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(images)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ValueError, match=r"needs 7,200 bytes, and 100 are free; set \$XDG_CACHE_HOME"):
        read(images)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.parent / "cache"))

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
        read(images)
    assert not [path for path in (cache_folder() / "images").iterdir() if path.is_dir()]


def test_a_cache_is_verified_once_in_a_process(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(images)
    read(images)
    monkeypatch.setattr(image_cache, "_manifest", lambda folder: pytest.fail("hashed again"))
    read(images)


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "it is a named pipe and not a file"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "it is a device and not a file"),
    "random": (lambda path: path.symlink_to("/dev/urandom"), "it is a device and not a file"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "nowhere": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "huge": (lambda path: [path.touch(), os.truncate(path, 2**40)], "1,099,511,627,776 bytes, more than any image"),
}


@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_what_is_no_file_in_a_folder_of_images_is_named(
    make: Callable[[Path], Any], message: str, images: Path
) -> None:
    make(images / "train" / "cat" / "99.png")
    with pytest.raises(ValueError, match=rf"train/cat/99.png .*{message}.*; replace or remove"):
        read(images)


def test_links_to_folders_are_followed_and_one_to_its_own_folder_once(images: Path, tmp_path: Path) -> None:
    expected = read(images)
    (images / "train" / "cat").rename(tmp_path / "elsewhere")
    (images / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    (images / "train" / "dog" / "again").symlink_to(images / "train" / "dog")
    assert read(images) == expected


def test_a_folder_that_cannot_be_read_is_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"dog cannot be read \(Permission denied\); allow it"):
        read(images)


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
