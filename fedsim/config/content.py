"""The files whose content is part of a run's name: those that options name, and the sources of custom parts."""

import glob
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, custom_names
from fedsim.config.config import Config
from fedsim.config.custom import Version, imported_sources
from fedsim.config.records import Choice
from fedsim.config.sources import RUNNING, other_files
from fedsim.config.typed import digest_of_code
from fedsim.data.fingerprint import fingerprint
from fedsim.data.places import existing_path, split_file, user_places
from fedsim.errors import ConfigError

AGAIN = "run the same command again, which starts a new run"
PATHS = ("path", "tokenizer")  # the options by which fedsim's own parts name files


@dataclass(frozen=True)
class Counted:
    """A file or folder whose content is part of a run's name.

    Parameters
    ----------
    setting
        The setting that names it, or the custom part that it is a source of, such as ``data.csv`` or ``model.name``.
    place
        Absolute path.
    digest
        Eight hexadecimal digits.
    """

    setting: str
    place: Path
    digest: str

    def __str__(self) -> str:
        return f"{self.setting}  {self.digest}  {self.place}"

    def to_json(self) -> dict[str, str]:
        """Return it as one object."""
        return {"setting": self.setting, "path": str(self.place), "digest": self.digest}


def counted_files(config: Config, tables: Sequence[str] | None = None) -> list[Counted]:
    """Return the files whose content is part of a run's name, of some tables or all.

    Raises
    ------
    ConfigError
        If one cannot be read.
    """
    found: list[Counted] = []
    for catalogue in CATALOGUES.values():
        if tables is not None and catalogue.table not in tables:
            continue
        choice = getattr(config, catalogue.table)
        sources = _sources(catalogue, choice)
        setting = f"{catalogue.table}.{catalogue.key}"
        found += [Counted(setting, each.file.absolute(), each.digest[:8]) for each in (sources or {}).values()]
        for option, value in catalogue.options(choice).items():
            setting = f"{catalogue.table}.{option}"
            for place in _places_named(option, value, sources):
                found.append(Counted(setting, place.absolute(), _fingerprint(place, setting)))
        for key, place, _ in _files_of_settings(catalogue, choice):
            setting = f"{catalogue.table}.{key}"
            found.append(Counted(setting, place.absolute(), _fingerprint(place, setting)))
    return found


def describe_files(config: Config) -> Iterator[str]:
    """Yield a line for each file whose content is part of a run's name, and for each that only the code names."""
    yield from map(str, counted_files(config))
    for place in uncounted_files(config):
        yield f"not counted: {place}, which the code names; make it an option, so that a changed file names another run"


def uncounted_files(config: Config) -> list[Path]:
    """Return the files that the code of custom parts names by a text, and that are no part of a run's name.

    Nobody but the user can tell whether such a file is read, or written.
    """
    modules = {name.partition(":")[0] for name in custom_names(config).values()} - {RUNNING}  # which may write them
    others = {place: None for module in sorted(modules) for place in other_files(module)}
    known = {os.path.realpath(each.place) for each in counted_files(config)} if others else ()
    return [place for place in others if os.path.realpath(place) not in known]


def in_name(catalogue: Catalogue, choice: Choice) -> dict[str, Any]:
    """Return what stands for a choice's files in the name of a run: options with their content, and its sources.

    A file is its own name without the folders, and its content; a part of fedsim's own takes ``path`` only.

    Raises
    ------
    ConfigError
        If a file cannot be read.
    """
    sources = _sources(catalogue, choice)
    found: dict[str, Any] = {}
    for option, value in catalogue.options(choice).items():
        setting = f"{catalogue.table}.{option}"
        places = list(_places_named(option, value, sources))
        if option in PATHS and len(places) == 1:
            found[option] = _fingerprint(places[0], setting)
        elif places:
            found[option] = _by_content(value, _folders(sources or {}), setting)
    for key, place, part in _files_of_settings(catalogue, choice):
        found[key] = _fingerprint(place, f"{catalogue.table}.{key}") + (part and f":{part}")
    if sources is None:
        return found
    name = getattr(choice, catalogue.key)
    module = name.partition(":")[0]
    if module == RUNNING and module not in sources:
        return found | {"source": digest_of_code(catalogue.find(name), module)}
    defined = sources[module].file if module == RUNNING else _defined_in(catalogue, name)
    known = {each.file: each.digest[:8] for each in sources.values()}
    found["source"] = known.get(defined) or _fingerprint(defined, catalogue.table) if defined else None
    if imports := {module: each.digest[:8] for module, each in sources.items() if each.file != defined}:
        found["imports"] = imports
    return found


def check_unchanged(
    config: Config, counted: Sequence[Counted], tables: Sequence[str] | None = None, remedy: str = AGAIN
) -> None:
    """Check that the files of some tables, or of all, have the content by which the run was named.

    Parameters
    ----------
    remedy
        What the message of an error ends with.

    Raises
    ------
    ConfigError
        If one has another.
    """
    then, now = (
        [(each.setting, each.place.name, each.digest) for each in files]
        for files in (counted, counted_files(config, tables))
    )
    if then != now:
        changed = next((each for each, key in zip(counted, then, strict=True) if key not in now), None)
        what = f"{changed.place} ({changed.setting})" if changed else "a file of this run"
        raise ConfigError(f"{what} has changed since this run was named by its content; {remedy}")


def versions(config: Config, *tables: str) -> tuple[str, ...]:
    """Return what changes with the content of the files of some tables."""
    return tuple(each.digest for each in counted_files(config, tables))


def _places_named(option: str, value: Any, sources: Mapping[str, Version] | None) -> Iterator[Path]:
    """Yield the files and folders that an option names, each once; a part of fedsim's own has no sources."""
    if sources is not None:
        yield from dict.fromkeys(_places_in(value, _folders(sources)))
    elif option in PATHS and (place := existing_path(str(value or ""))):
        yield place


def _files_of_settings(catalogue: Catalogue, choice: Choice) -> Iterator[tuple[str, Path, str]]:
    """Yield each fixed setting that names a file, the file, and the name of the part of it that is meant."""
    for key in choice.FILES:
        file, part = split_file(getattr(choice, key)) if catalogue.is_fixed(key, choice) else (None, "")
        if file is not None:
            yield key, file, part


def _sources(catalogue: Catalogue, choice: Choice) -> Mapping[str, Version] | None:
    """Return the sources of a custom part by module, or None if it is fedsim's own."""
    name = getattr(choice, catalogue.key)
    if name in catalogue.entries:
        return None
    catalogue.find(name)  # imports it
    return imported_sources(name)


def _defined_in(catalogue: Catalogue, name: str) -> Path | None:
    """Return the file in which a custom part is defined, which may be a library's."""
    try:
        file = inspect.getsourcefile(catalogue.find(name))
    except TypeError:  # an object that can be called
        return None
    return Path(file) if file else None


def _folders(sources: Mapping[str, Version]) -> list[Path]:
    """Return the folders of a custom part's sources, from which its code may read files."""
    return list(dict.fromkeys(each.file.absolute().parent for each in sources.values()))


def _by_content(value: Any, folders: Sequence[Path], setting: str) -> Any:
    """Return an option's value with the name and content of each file in place of its path."""
    if isinstance(value, Mapping):
        return {str(_by_content(key, folders, setting)): _by_content(value[key], folders, setting) for key in value}
    if isinstance(value, list | tuple | set | frozenset):
        return [_by_content(each, folders, setting) for each in value]
    if isinstance(value, str | Path) and (places := list(_places_in(value, folders))):
        return " ".join([Path(value).name, *(_fingerprint(place, setting) for place in places)])
    return str(value) if isinstance(value, Path) else value


def _places_in(value: Any, folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the files and folders that an option's value names: where a run would look, or next to a source."""
    if isinstance(value, Mapping):
        yield from _places_in([*value, *value.values()], folders)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _places_in(each, folders)
    elif isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        yield from _places(str(value), folders)


def _places(text: str, folders: Sequence[Path]) -> Iterator[Path]:
    seen: set[str] = set()
    around = [Path.cwd(), Path.home(), *folders]
    for place in [*user_places(text), *(folder / text for folder in folders)]:
        # A pattern of names; the layer language has patterns too, but without folders.
        is_pattern = os.sep in text and glob.has_magic(text)
        matching = sorted(glob.glob(str(place), recursive=True)) if is_pattern else []  # noqa: PTH207 (any text)
        for found in [Path(each) for each in matching] or [place]:
            real = os.path.realpath(found)
            # A folder around the code, the working folder or all the user has, such as "." or "/", is no data.
            is_around = any(each.resolve().is_relative_to(real) for each in around)
            if real not in seen and (os.path.isfile(real) or (os.path.isdir(real) and not is_around)):  # noqa: PTH112, PTH113 (any text)
                seen.add(real)
                yield found


def _fingerprint(place: Path, setting: str) -> str:
    try:
        return fingerprint(place)
    except OSError as error:
        raise ConfigError(
            f"{setting}: {error.filename or place} cannot be read ({error.strerror}), but a run's name "
            "depends on its content"
        ) from error
    except MemoryError as error:
        raise ConfigError(f"{setting}: {error}") from error
