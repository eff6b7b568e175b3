"""One interface for the files of a folder and of a zip archive."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedsim.data.fingerprint import digest_of, names_in
from fedsim.reading import check_file

LARGEST = 2**30  # bytes of one file


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
        If it is neither, the archive is damaged, or a folder or a file cannot be read.
    """
    if place.is_dir():
        yield _of_folder(place)
        return
    check_file(place)
    try:
        archive = zipfile.ZipFile(place)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place} is not a complete zip archive ({error}); download it again") from error
    with archive:
        infos = {info.filename: info for info in archive.infolist()}
        yield FileTree(sorted(infos), archive.read, partial(_version_in, infos, place))


def _version_in(infos: Mapping[str, zipfile.ZipInfo], place: Path, name: str) -> list[int]:
    info = infos[name]
    _check_size(info.file_size, name, place)
    return [info.file_size, info.CRC]


def _of_folder(place: Path) -> FileTree:
    def version(name: str) -> str:
        try:
            _check_size(check_file(place / name).st_size, name, place)
            return digest_of(place / name)
        except OSError as error:
            raise ValueError(f"{place}: {name} cannot be read ({error.strerror}); replace or remove it") from error

    try:
        names = sorted(names_in(place))
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}); allow it, so that no image is left out"
        ) from error
    return FileTree(names, lambda name: (place / name).read_bytes(), version)


def _check_size(size: int, name: str, place: Path) -> None:
    if size > LARGEST:
        raise ValueError(f"{place}: {name} has {size:,} bytes, more than any image; replace or remove it")
