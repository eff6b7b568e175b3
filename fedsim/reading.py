"""A user's files, read once it is known that they are files: a pipe may have no writer, and a device has no end."""

import codecs
import errno
import os
import stat
from pathlib import Path

from fedsim.memory import check_fits

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_file(path: Path) -> os.stat_result:
    """Check that a path is a file or a folder, or a link to one; return its status.

    Raises
    ------
    OSError
        If it is not, or does not exist.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a path has no null characters", str(path))
    status = path.stat()
    check_kind(path, status)
    return status


def check_kind(path: Path, status: os.stat_result) -> None:
    """Check, by the status of a path, that it is no pipe and no device.

    Raises
    ------
    OSError
        If it is.
    """
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        raise OSError(errno.EINVAL, f"it is {kind} and not a file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises
    ------
    OSError
        If it is no file, or cannot be read.
    MemoryError
        If it is larger than the free memory.
    """
    check_fits(check_file(path).st_size, str(path))
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Return a text, without the byte-order mark with which some editors begin a file, its lines ending as on Unix.

    Raises
    ------
    OSError
        If it is no file, or cannot be read.
    ValueError
        If it is not UTF-8.
    MemoryError
        If it is larger than the free memory.
    """
    content = read_bytes(path)
    if content.startswith(UTF16) or b"\0" in content[:4]:
        raise ValueError(f"{path} is UTF-16 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}, line {line}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def existing_path(path: str) -> Path | None:
    """Return a user's file or folder, as given or relative to ``$FEDSIM_DATA``; None if it does not exist."""
    return next((place for place in user_places(path) if os.path.exists(place)), None) if path else None  # noqa: PTH110 (any text)


def user_places(path: str) -> list[Path]:
    """Return where a user's file or folder may be: as given, and relative to ``$FEDSIM_DATA``."""
    given = Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for a user that does not exist)
    environment = os.environ.get("FEDSIM_DATA")
    return [given, *([Path(environment).expanduser() / given] if environment and not given.is_absolute() else [])]
