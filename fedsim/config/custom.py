"""Strategies, models and other parts that a user has written, as ``module:attribute``."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.errors import ConfigError
from fedsim.packages import OURS

# What the files held from which modules were imported.
_imported: dict[str, str] = {}


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
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
        entry = getattr(module, attribute)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where} cannot be imported from {folder}: {error}") from error
    if not callable(entry):
        raise ConfigError(f"{where} must be a function or a class, and is a {type(entry).__name__}")
    _imported.setdefault(module_name, _content(module))
    return entry


def reload_changed(name: str) -> None:
    """Import a module again whose file has changed since, as between two runs in one notebook.

    A run is named by the content of the file, so it must run that content.
    """
    module_name = name.partition(":")[0]
    module = sys.modules.get(module_name)
    if module is not None and module_name in _imported and (content := _content(module)) != _imported[module_name]:
        importlib.reload(module)
        _imported[module_name] = content


def _content(module: ModuleType) -> str:
    path = inspect.getsourcefile(module)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
