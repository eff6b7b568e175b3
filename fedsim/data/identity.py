"""Identity of a user's object across processes: a hash of its state, its code and its files."""

import io
import os
import pickle
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.data.fingerprint import names_in, status_of

LONGEST_PATH = 4096


def identity_of(value: object) -> str | None:
    """Return sixteen hexadecimal digits that change with an object.

    They are a hash of its pickled state, of the files of its classes and functions, and of the sizes, times and
    places on the disk of all files that its texts and paths name, those in folders included.

    Returns
    -------
    identity
        None if the object holds something that cannot be pickled, such as a lambda or an open file, or names a folder
        that is too large to look at, such as the home folder.
    """
    hashed = _Hashed()
    pickler = _Pickler(hashed, protocol=5)
    try:
        pickler.dump(value)
    except Exception:  # __reduce__ may raise anything
        return None
    if any(map(_is_around, pickler.paths)):
        return None
    for path in sorted(pickler.paths):
        hashed.write(repr((path, _status(Path(path)))).encode(errors="surrogateescape"))
    return hashed.digest.hexdigest()[:16]


class _Hashed(io.RawIOBase):
    """A file of which only the hash is kept."""

    def __init__(self) -> None:
        self.digest = sha256()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return memoryview(content).nbytes


class _Pickler(pickle.Pickler):
    """A pickler that notes the files of what it meets."""

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.paths: set[str] = set()

    def persistent_id(self, obj: Any) -> Any:
        """Note an object's files; put an order on sets, whose own is another in each process."""
        if isinstance(obj, str | Path):
            text = str(obj)
            if 0 < len(text) < LONGEST_PATH and "\0" not in text and os.path.exists(text):  # noqa: PTH110 (any text)
                self.paths.add(text)
            return text if isinstance(obj, Path) else None  # whose parts are no paths
        if isinstance(obj, set | frozenset):
            return sorted(obj, key=repr)
        if callable(obj) and (file := _source(obj)):
            self.paths.add(file)
        return None

    def reducer_override(self, obj: Any) -> Any:
        """Pickle a tensor by its values; torch's own way depends on where they lie."""
        if isinstance(obj, Tensor):
            values = obj.detach().cpu().contiguous()
            return _rebuilt, (str(obj.dtype), tuple(obj.shape), bytes(values.untyped_storage())[: values.nbytes])
        return NotImplemented


def _rebuilt(*parts: Any) -> tuple[Any, ...]:
    """Stand for a tensor; what is pickled here is never read."""
    return parts


def _source(obj: Callable[..., Any]) -> str | None:
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    return getattr(module, "__file__", None)


def _is_around(path: str) -> bool:
    """Tell whether a folder holds the working folder or all that the user has, such as ``.`` or ``/``."""
    real = os.path.realpath(path)
    return any(os.path.realpath(each) == real or each.is_relative_to(real) for each in (Path.cwd(), Path.home()))


def _status(place: Path) -> list[Any]:
    try:
        if place.is_dir():
            names = [name for name in sorted(names_in(place)) if not name.endswith("/")]
            return [(name, status_of(place / name)) for name in names]
        return list(status_of(place))
    except OSError:  # a socket, or a file that cannot be read
        return []
