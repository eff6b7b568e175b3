"""Strategies, models and other parts that a user has written, as ``module:attribute``."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError, error_line, is_of_the_user
from fedsim.packages import OURS

# A hash of the file from which each module was imported.
_imported: dict[str, str] = {}
# The working folder, where it was put at the end of Python's path here.
_added: list[str] = []


def load_custom(name: str, where: str) -> Callable[..., Any]:
    """Import ``module:attribute``, from the working folder too.

    Parameters
    ----------
    where
        What the message of an error begins with.

    Raises
    ------
    ConfigError
        If the module has the name of one of fedsim's, or it or the attribute cannot be imported, or cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] in OURS:
        raise ConfigError(f"{where}: {module_name!r} is a package of fedsim; rename the file or folder")
    folder = _see_working_folder()
    try:
        module = importlib.import_module(module_name)
        entry = getattr(module, attribute)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:  # a module runs anything as it is imported
        reason = error_line(error) if is_of_the_user(error) else error
        raise ConfigError(f"{where} cannot be imported from {folder}: {reason}") from error
    if not callable(entry):
        raise ConfigError(f"{where} must be a function or a class, and is a {type(entry).__name__}")
    path = inspect.getsourcefile(module)
    _imported.setdefault(module_name, _content(path))
    return entry


def forget_changed(name: str) -> None:
    """Let a module be imported again whose file is another one now, as between two runs in one notebook.

    A run is named by the content of the file, so it must run that content.
    """
    module_name, colon, _ = name.partition(":")
    if colon and module_name in sys.modules and module_name in _imported:
        _see_working_folder()
        spec = find_spec(module_name) if "." in module_name else PathFinder.find_spec(module_name)
        if spec and _content(spec.origin) != _imported[module_name]:
            del sys.modules[module_name], _imported[module_name]


def _see_working_folder() -> str:
    """Put the working folder at the end of Python's path, in place of an earlier one; return it."""
    folder = str(Path.cwd())
    for earlier in [each for each in _added if each != folder]:
        _added.remove(earlier)
        if earlier in sys.path:
            sys.path.remove(earlier)
    if folder not in sys.path:
        sys.path.append(folder)
        _added.append(folder)
    return folder


def _content(path: str | None) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""
