"""Settings with those of a sweep or tuning: a table changes the settings that it names, and leaves the others."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fedsim.config.asymmetry import AsymmetryConfig
from fedsim.config.names import canonical
from fedsim.config.tables import Choice, TuneConfig
from fedsim.config.toml import Changes, with_settings


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
        result = with_settings(result, {path: _merged(_at(result, path), value, _table_of(record, path))})
    return result


def _table_of(record: type[BaseModel] | None, path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return what the table at a path is a record of; None if a value is there, or lists of values to try."""
    for name in path:
        field = record.model_fields.get(name) if record else None
        annotation: Any = field.annotation if field else None
        record = annotation if _is_record(annotation) else None
    return record


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path; None if nothing is there."""
    for name in path:
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not TuneConfig


def _merged(old: Any, new: Any, record: type[BaseModel] | None) -> Any:
    """Return a changed table of a record; what is no such table is the new value."""
    if record is AsymmetryConfig:  # of which a text is the kind
        old, new = ({"kind": each} if isinstance(each, str) else each for each in (old, new))
    if not record or not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    kept = {key: value for key, value in old.items() if key in _lasting(old, new, record)}
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
