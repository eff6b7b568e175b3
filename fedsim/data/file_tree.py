"""One interface for the files of a folder and of a zip archive."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim.data.fingerprint import digest_of


@dataclass(frozen=True)
class FileTree:
    """The files below a folder, or in an archive.

    Parameters
    ----------
    names
        Sorted names of all files, and of all folders with a trailing slash.
    read
        Function from a file's name to its content.
    version
        Function from a file's name to numbers or a hash that change when its content does.
    """

    names: list[str]
    read: Callable[[str], bytes]
    version: Callable[[str], list[int] | str]


@contextmanager
def open_tree(place: Path) -> Iterator[FileTree]:
    """Open a folder or a zip archive.

    Raises
    ------
    ValueError
        If it is neither, or the archive is damaged.
    """
    if place.is_dir():
        yield _of_folder(place)
        return
    try:
        archive = zipfile.ZipFile(place)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place} is not a complete zip archive ({error}); download it again") from error
    with archive:
        infos = {info.filename: info for info in archive.infolist()}
        yield FileTree(sorted(infos), archive.read, lambda name: [infos[name].file_size, infos[name].CRC])


def _of_folder(place: Path) -> FileTree:
    names = sorted(path.relative_to(place).as_posix() + ("/" if path.is_dir() else "") for path in place.rglob("*"))
    return FileTree(names, lambda name: (place / name).read_bytes(), lambda name: digest_of(place / name))
