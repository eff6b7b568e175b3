"""fedsim's other top-level packages: found next to this one, whatever else has their names."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OURS = ("strategies", "partitions")
HOME = Path(__file__).resolve().parent.parent


class _Neighbours(MetaPathFinder):
    """Finds our packages before a file of the same name in the working folder, or one from PyPI."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(HOME)]) if fullname in OURS else None


def claim() -> None:
    """See to it that our packages are imported under their names.

    Raises
    ------
    ImportError
        If others have been imported under them before.
    """
    for name in OURS:
        if name in sys.modules and Path(sys.modules[name].__file__ or "").resolve().parent != HOME / name:
            raise ImportError(
                f"{name!r} was imported from {sys.modules[name].__file__} before fedsim, which has a package of that "
                "name; import fedsim first, or rename the file"
            )
    if not any(isinstance(finder, _Neighbours) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Neighbours())
