"""Ways in which files are damaged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.results.folder import RunFolder

# What a run leaves that is neither read again nor shown as a result.
UNSEALED = (".lock", "log.txt", "report.html")


def flip(path: Path, where: float = 0.5) -> None:
    """Change one bit of a file; ``where`` is from 0, its first byte, to 1, its last."""
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Leave nothing in a file."""
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    """Repeat the last half of a file."""
    content = path.read_bytes()
    path.write_bytes(content + content[len(content) // 2 :])


def swap(one: Path, other: Path) -> None:
    """Give each of two files the content of the other."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "empty": empty, "delete": Path.unlink}


@contextmanager
def damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage a file for a while."""
    content = path.read_bytes()
    damage(path)
    yield
    path.write_bytes(content)


def sealed_files(folder: RunFolder) -> Iterator[Path]:
    """Yield all files of a run in which damage is noticed."""
    yield from (path for path in sorted(folder.path.rglob("*")) if path.is_file() and path.name not in UNSEALED)


def contents(folder: RunFolder) -> dict[Path, bytes]:
    """Return the content of all files of a run."""
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
