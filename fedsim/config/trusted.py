"""Which code an experiment's file may name: the user's own, and that of installed packages which offer it.

A name in a config is imported and called, so that any other code, such as Python's ``subprocess:getoutput``, would be a
command in a file of settings. Where a module is, is found without importing anything.
"""

import inspect
import keyword
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.config.sources import RUNNING, find_module
from fedsim.errors import ConfigError, is_the_users
from fedsim.lazy import Place
from fedsim.packages import OURS
from fedsim.shortening import a_type

GROUP = "fedsim"  # of the entry points by which an installed package offers its code
RULE = (
    "which no experiment may call: it may call files of yours, in the working folder or on PYTHONPATH, and installed "
    f"packages with an entry point of the group {GROUP!r}; write a function in such a file"
)


def check_spelling(name: str, where: str) -> None:
    """Check that a name can be one of custom code.

    Parameters
    ----------
    where
        What the message of an error begins with.

    Raises
    ------
    ConfigError
        If it is not of the form ``module:attribute``, such as one with a path.
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in (*module.split("."), attribute)):
        raise ConfigError(
            f"{where} must be a module and what is in it, such as 'my_folder.my_module:my_function'; a path "
            "or a relative name is none"
        )


def check_place(module: str) -> None:
    """Check that a module, and the packages that it is in, may be imported; nothing is.

    Raises
    ------
    ConfigError
        If one is neither the user's nor of an installed package that offers its code.
    """
    first = module.partition(".")[0]
    if first in OURS:
        raise ConfigError(f"is in {module!r}, a package of fedsim; rename the file or folder")
    if module == RUNNING:  # which is imported already
        return
    spec = None
    for name in accumulate(module.split("."), "{}.{}".format):
        spec = find_module(name, spec)
        if spec is None:  # which an import says better
            return
        is_folder = spec.origin is None and spec.submodule_search_locations is not None
        if not is_folder and not _is_trusted(name, spec.origin):
            raise ConfigError(f"is code of {_owner(name)}, {RULE}")


def check_entry(entry: Any, makes: Place | None, *, classes_only: bool) -> None:
    """Check that what a name stands for may be called: it is defined in code that may be named, and of the right kind.

    Parameters
    ----------
    makes
        Class of which an entry that is a class must be a subclass; without it, no class will do.
    classes_only
        Whether a function will not do.

    Raises
    ------
    ConfigError
        If it is not.
    """
    kind = "a class" if classes_only else "a function or a class" if makes else "a function"
    if not callable(entry):
        raise ConfigError(f"must be {kind}, not {a_type(entry)}")
    module, file = _defined_in(entry)
    if not _is_trusted(module, file):
        raise ConfigError(f"is code of {_owner(module)}, {RULE}")
    if _is_made(entry, makes):
        raise ConfigError(f"must be {kind}, not {a_type(entry)} that is already built")
    is_class = isinstance(entry, type)
    fits = (makes and issubclass(entry, makes.load())) if is_class else not classes_only
    if not fits:
        wanted = ["a function"] * (not classes_only) + ([f"a subclass of {makes.module}.{makes.name}"] if makes else [])
        found = entry.__name__ if is_class else a_type(entry)
        is_flowers = is_class and any(each.__module__.startswith("flwr.") for each in entry.__mro__)
        hint = "; a FlowerRule can hold a strategy of Flower" if classes_only and is_flowers else ""
        raise ConfigError(f"must be {' or '.join(wanted)}, not {found}{hint}")


def _is_made(entry: Any, makes: Place | None) -> bool:
    """Return whether an entry is what it should make, such as a model, which can be called too."""
    if makes is None or isinstance(entry, type | partial) or inspect.isroutine(entry):
        return False
    return isinstance(entry, makes.load())


def _is_trusted(module: str, file: str | None) -> bool:
    if file and is_the_users(file) and (file.startswith("<") or Path(file).is_absolute()):
        return True
    return module.partition(".")[0] in _offered()


def _owner(module: str) -> str:
    package = module.partition(".")[0]
    return f"Python's {package!r}" if package in sys.stdlib_module_names else f"the package {package!r}"


def _offered() -> set[str]:
    """Return the packages that offer their code; none of Python's own can."""
    found = {each.module.partition(".")[0] for each in entry_points(group=GROUP)}
    return found - sys.stdlib_module_names


def _defined_in(entry: Callable[..., Any]) -> tuple[str, str | None]:
    """Return the module and the file in which something callable is defined, whatever it was imported into."""
    while isinstance(entry, partial):
        entry = entry.func
    entry = inspect.unwrap(entry)
    if not (isinstance(entry, type) or inspect.isroutine(entry)):
        entry = type(entry)
    name = getattr(entry, "__module__", None) or ""
    module = sys.modules.get(name, ModuleType(name))
    # A cell of a notebook, or what is typed, has no file.
    file = getattr(module, "__file__", None) or ("<stdin>" if name == RUNNING else None)
    code = getattr(inspect.unwrap(entry), "__code__", None)
    if code is not None and not is_the_users(code.co_filename):
        file = code.co_filename
    return name, file
