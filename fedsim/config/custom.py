"""Strategies, models and other parts that a user has written, as ``module:attribute``."""

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.config.sources import source_files
from fedsim.config.trusted import check_entry, check_place
from fedsim.data.fingerprint import SETTLED_SECONDS, digest_of, once
from fedsim.errors import ConfigError, error_line, is_of_the_user
from fedsim.lazy import Place


@dataclass(frozen=True)
class Version:
    """A source file, as it is or was."""

    file: Path
    digest: str


# By each module that was imported here: its sources as they were then.
_imported: dict[str, Mapping[str, Version]] = {}
# The working folder, where it was put at the end of Python's path here.
_added: list[str] = []


def load_custom(name: str, where: str, makes: Place | None = None, *, classes_only: bool = False) -> Callable[..., Any]:
    """Import ``module:attribute``, from the working folder too.

    Parameters
    ----------
    where
        What the message of an error begins with.
    makes
        Class of which an entry that is a class must be a subclass; without it, no class will do.
    classes_only
        Whether a function will not do.

    Raises
    ------
    ConfigError
        If it is no code that an experiment may name, it or the module cannot be imported, or it is of another kind.
    """
    module, _, attribute = name.partition(":")
    folder = _see_working_folder()
    try:
        check_place(module)
        entry = _import(module, attribute, folder)
        check_entry(entry, makes, classes_only=classes_only)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from error
    return entry


def imported_sources(name: str) -> Mapping[str, Version]:
    """Return the sources of a custom part by module: as they were when it was imported here, else as they are.

    A module that another one imports later, in a function, and has not yet is as it is.
    """
    module = name.partition(":")[0]
    now = _versions(module)
    if module not in _imported or module not in sys.modules:
        return now
    then = _imported[module]
    return {each: then[each] if each in sys.modules else now.get(each, then[each]) for each in then}


def forget_changed(names: Iterable[str]) -> None:
    """Let custom parts be imported again of which a source is another one now, as between two runs in one notebook.

    A run is named by the content of the sources, so it must run that content. A module that a script had imported
    before is imported again if its file was changed since Python was started.
    """
    modules = {module for module, colon, _ in (name.partition(":") for name in names) if colon}
    if not modules:
        return
    _see_working_folder()
    importlib.invalidate_caches()
    for module in modules:
        now = _versions(module)
        if _is_stale(module, now):
            for name in {*now, *_imported.pop(module, {})} - {"__main__"}:
                _forget(name)


def _forget(module: str) -> None:
    package, _, name = module.rpartition(".")
    sys.modules.pop(module, None)
    if package in sys.modules:  # which would hand out the old one
        vars(sys.modules[package]).pop(name, None)


def _import(module: str, attribute: str, folder: str) -> Any:
    try:
        return getattr(_import_module(module), attribute)
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a module runs anything as it is imported
        reason = error_line(error) if is_of_the_user(error) else str(error)
        if isinstance(error, SyntaxError | ValueError) and not is_of_the_user(error):  # a text that cannot be read
            reason += f" in {module!r}"
        raise ConfigError(f"cannot be imported from {folder}: {reason}") from error


def _import_module(module: str) -> ModuleType:
    if module in _imported and module in sys.modules:
        return importlib.import_module(module)
    before = _versions(module)
    for version in before.values():
        _remove_old_bytecode(version.file)
    imported = importlib.import_module(module)
    if _versions(module) != before:
        raise ConfigError("was changed in a source while it was imported; run the same command again")
    _imported[module] = before
    return imported


def _versions(module: str) -> dict[str, Version]:
    def look() -> dict[str, Version]:
        return {name: Version(file, digest_of(file)) for name, file in source_files(module).items()}

    return once(("sources", module), look)


def _is_stale(module: str, now: Mapping[str, Version]) -> bool:
    if module in _imported:
        return _imported[module] != now
    known = {name: version for versions in _imported.values() for name, version in versions.items()}
    for name, version in now.items():
        if (loaded := sys.modules.get(name)) is None:
            continue
        if name in known:
            if known[name] != version:
                return True
        elif getattr(loaded, "__file__", None) != str(version.file) or _changed(version.file) > _python_started():
            return True
    return False


def _remove_old_bytecode(source: Path) -> None:
    """Remove compiled code that Python could take for that of a source with the same size and second."""
    with suppress(OSError, NotImplementedError):
        compiled = Path(cache_from_source(str(source)))
        if compiled.stat().st_mtime <= _changed(source) + SETTLED_SECONDS:
            compiled.unlink()


def _changed(file: Path) -> float:
    status = file.stat()
    return max(status.st_mtime, status.st_ctime)


def _python_started() -> float:
    """Return when this process was started, in seconds of the clock; where the system does not tell, long ago."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


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
