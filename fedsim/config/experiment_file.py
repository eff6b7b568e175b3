"""An experiment as a user gives it: a file or settings, and changes; what is wrong is found before torch is needed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config.assignments import LISTS, is_text, setting_path
from fedsim.config.changes import as_tables
from fedsim.config.choices import CATALOGUES, custom_names, resolve
from fedsim.config.config import Config
from fedsim.config.custom import forget_changed
from fedsim.config.tables import TuneConfig
from fedsim.config.toml import Changes, path_of, plain_settings, read_toml, with_settings
from fedsim.errors import ConfigError
from fedsim.options import as_toml

NAME = "experiment"


@dataclass(frozen=True)
class Experiment:
    """Settings of one run or several.

    Parameters
    ----------
    config
        All settings, with their sweep.
    name
        Name of the folder of its runs.
    source
        Where the settings come from, for messages.
    """

    config: Config
    name: str
    source: str

    def configs(self) -> list[Config]:
        """Return the resolved settings of each run of the sweep."""
        return [resolve(each) for each in self.config.runs(self.source)]


def read_experiment(
    settings: str | Path | Mapping[str, Any],
    changes: Changes | None = None,
    name: str | None = None,
    *,
    as_texts: Changes | None = None,
) -> Experiment:
    """Read and check an experiment.

    Parameters
    ----------
    settings
        Path of a TOML file, or the settings themselves.
    changes
        Values by path; they have the last word over the file, its sweep and its tuning.
    name
        Name of the folder of its runs: by default that of the file, or ``experiment``.
    as_texts
        Other values of some changes, for options that hold a text only.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a setting is unknown or wrong.
    """
    if isinstance(settings, Mapping):
        source, found = name or NAME, plain_settings(settings)
    else:
        if not isinstance(settings, str | Path):
            raise ConfigError(f"settings are {settings!r}; give the path of a TOML file, or a dict of settings")
        path = Path(settings)
        source, name, found = str(path), name or path.stem, read_toml(path)
        if name in (".", ".."):
            raise ConfigError(f"{path}: its runs would be in a folder {name!r}; rename the file")
    changes = changes or {}
    config = Config.parse(_changed(found, changes), source)
    runs = _checked_runs(config, source)
    named = {name for each in runs for name in custom_names(each).values()}
    forget_changed(named | set(_texts(config.tune.grid)) | set(config.callbacks))
    if texts := {path: value for path, value in (as_texts or {}).items() if _holds_text(runs, path)}:
        config = Config.parse(_changed(found, {**changes, **texts}), source)
        _checked_runs(config, source)
    return Experiment(config, name or NAME, source)


def _checked_runs(config: Config, source: str) -> list[Config]:
    """Return the runs of a sweep; what each of them chooses by name is known, and its adapter has no idle option."""
    runs = config.runs(source)
    for each in runs:
        each.model.adapter.check_options(source)
        each.model.asymmetry.check_options(source, each.model.adapter.kind)
        for catalogue in CATALOGUES.values():
            catalogue.check_name(getattr(getattr(each, catalogue.table), catalogue.key))
    return runs


def _changed(settings: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Return settings with changes, which no list of values in the sweep or the tuning sets otherwise."""
    kept = as_tables(settings, Config)
    kept |= {name: _without(settings, name, changes) for name in LISTS if _table(settings, name)}
    in_lists = {path: value for path, value in changes.items() if path[0] in LISTS}
    is_tuned = _lists(kept, "tune") or any(path[0] == "tune" for path in in_lists)
    if _lists(settings, "tune") and not is_tuned:  # the changes have set all that was
        del kept["tune"]
    changed = with_settings(kept, in_lists)
    swept = [path_of(key) for key in _lists(changed, "sweep")]
    for path, value in changes.items():
        # What each table of the sweep has may be no setting without them, as the rank of an adapter that they choose.
        in_tables = any(_is_within(path, each) for each in swept) and not isinstance(value, Mapping)
        if path[0] not in LISTS and not in_tables:
            changed = with_settings(changed, {path: as_tables(value, Config, path)})
    for name in LISTS:
        lists = _lists(changed, name)
        _check_said_once(name, lists, changes)
        tables = {key: _each_changed(path_of(key), values, changes) for key, values in lists.items()}
        changed |= {name: changed[name] | tables} if tables else {}
    return changed


def _check_said_once(name: str, lists: Mapping[str, Any], changes: Changes) -> None:
    """Check that changes do not set something and also list values of it."""
    for path, value in changes.items():
        if again := [key for key in lists if _is_within(path_of(key), path)]:
            one, other = f"{'.'.join(path)} = {as_toml(value)}", f"{name}.{again[0]} = {as_toml(lists[again[0]])}"
            raise ConfigError(f"{one} and {other} are both set on top of the file; remove one of them")


def _without(settings: Mapping[str, Any], name: str, changes: Changes) -> dict[str, Any]:
    """Return what is swept or tuned without the settings that change, and without what is inside these.

    What is inside a table of which a change lists values is left out too.
    """
    lists = _lists(settings, name)
    listed = {path_of(path[1]) for path in changes if path[0] == name and len(path) == 2}
    gone = {key for key in lists if any(_is_within(path_of(key), each) for each in changes)}
    gone |= {key for key in lists if any(_is_within(path_of(key), each) and path_of(key) != each for each in listed)}
    return {key: values for key, values in _table(settings, name).items() if key not in gone}


def _each_changed(place: tuple[str, ...], values: Any, changes: Changes) -> Any:
    """Return whole tables that are swept or tuned, each with the changes inside them too, and without repetition."""
    inside = {
        path[len(place) :]: as_tables(value, Config, path) for path, value in changes.items() if _is_within(path, place)
    }
    if not inside or not isinstance(values, list):
        return values
    tables = [as_tables(each, Config, place) for each in values]
    changed = [with_settings(each, inside) if isinstance(each, Mapping) else each for each in tables]
    return [each for number, each in enumerate(changed) if each not in changed[:number]]


def _lists(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the lists of values that are swept or tuned, by setting."""
    own = TuneConfig.model_fields if name == "tune" else ()
    return {key: values for key, values in _table(settings, name).items() if key not in own}


def _is_within(path: tuple[str, ...], table: tuple[str, ...]) -> bool:
    return path[: len(table)] == table


def _holds_text(runs: Iterable[Config], path: tuple[str, ...]) -> bool:
    """Return whether an option of what some run chooses by name holds a text only."""
    table, _, option = (path[1] if path[0] in LISTS else ".".join(path)).partition(".")
    catalogues = [each for each in CATALOGUES.values() if each.table == table]
    chosen = dict.fromkeys((each, getattr(getattr(run, table), each.key)) for run in runs for each in catalogues)
    fields = [catalogue.schema(name).model_fields.get(option) for catalogue, name in chosen]
    return any(field is not None and is_text(field.annotation) for field in fields)


def read_overrides(overrides: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return changes by path from values by dotted settings, such as ``{"strategy.shared": "head"}``.

    Raises
    ------
    ConfigError
        If a key is none.
    """
    changes = {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides are {overrides!r}; give a dict by setting, such as {{'local.lr': 0.1}}")
    for key, value in plain_settings(overrides).items():
        if not (path := setting_path(key)):
            raise ConfigError(f"{key!r} is not a setting; give a dotted key, such as 'local.lr'")
        changes[path] = value
    return changes


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in nested values, some of which may name custom parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _table(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table, or nothing where it is none: the check of all settings says so."""
    table = settings.get(name)
    return table if isinstance(table, dict) else {}
