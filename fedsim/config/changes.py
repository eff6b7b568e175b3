"""Settings with those of a sweep or tuning: a table changes the settings that it names, and leaves the others."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fedsim.config.adapter import AdapterConfig
from fedsim.config.asymmetry import AsymmetryConfig
from fedsim.config.names import canonical
from fedsim.config.records import Choice
from fedsim.config.tables import TuneConfig
from fedsim.config.toml import Changes, path_of, value_at, with_settings


def with_changes(settings: Mapping[str, Any], changes: Changes, record: type[BaseModel]) -> dict[str, Any]:
    """Return nested settings with changes, in their order; none of the arguments is changed.

    A table keeps the settings that its change does not name. If the change chooses something else by name, the options
    of the former choice are dropped, and settings that do not depend on the choice are kept.

    Parameters
    ----------
    record
        What the settings are of, which tells their tables from values that are tables, such as factors by layer.

    Raises
    ------
    ConfigError
        If a path goes through something that is not a table.
    """
    result = dict(settings)
    for path, value in changes.items():
        result = with_settings(result, {path: _merged(value_at(result, path), value, _table_of(record, path))})
    return result


def combinations(lists: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield each combination of the values by setting; the last setting varies fastest."""
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def as_changes(values: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return changes by path from values by dotted setting.

    A whole table goes before its own settings, so that neither undoes the other.
    """
    return {path_of(key): values[key] for key in sorted(values, key=lambda key: key.count("."))}


def as_tables(value: Any, record: type[BaseModel] | None, path: tuple[str, ...] = ()) -> Any:
    """Return settings in which all tables are written as such: that of ``[model.asymmetry]`` may be a text, its kind.

    Parameters
    ----------
    value
        A table, or a value that belongs to one.
    record
        What the whole settings are of.
    path
        Where in them the value is.
    """
    record = _table_of(record, path)
    if record is AsymmetryConfig and isinstance(value, str):
        return {"kind": value}
    if record and isinstance(value, Mapping):
        return {key: as_tables(each, record, (key,)) for key, each in value.items()}
    return value


def _table_of(record: type[BaseModel] | None, path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return what the table at a path is a record of; None if a value is there, or lists of values to try."""
    for name in path:
        field = record.model_fields.get(name) if record else None
        annotation: Any = field.annotation if field else None
        record = annotation if _is_record(annotation) else None
    return record


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not TuneConfig


def _merged(old: Any, new: Any, record: type[BaseModel] | None) -> Any:
    """Return a changed table of a record; what is no such table is the new value."""
    old, new = as_tables(old, record), as_tables(new, record)
    if not record or not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    kept = {key: value for key, value in old.items() if key in _lasting(old, new, record)}
    if record is AdapterConfig and ("rank" in new or "ranks" in new):  # each says what the other does
        kept = {key: value for key, value in kept.items() if key not in ("rank", "ranks")}
    return kept | {key: _merged(kept.get(key), value, _table_of(record, (key,))) for key, value in new.items()}


def _lasting(old: Mapping[str, Any], new: Mapping[str, Any], record: type[BaseModel]) -> Mapping[str, Any]:
    """Return the settings of a table that are kept: all, unless another choice is made by name."""
    key = getattr(record, "KEY", None)
    if not key or key not in new:
        return old
    before = str(old.get(key, record.model_fields[key].default))
    if canonical(str(new[key]), [before]) == before:
        return old
    return record.model_fields if issubclass(record, Choice) else {}
