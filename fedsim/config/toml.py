"""Settings as nested tables: read from TOML, changed by dotted keys, written and hashed."""

import copy
import hashlib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.errors import ConfigError
from fedsim.reading import check_file, read_text

Changes = Mapping[tuple[str, ...], Any]
LARGEST_FILE = 2**24  # bytes; a list of a million values has fewer
LONGEST_RANGE = 10**6
DEEPEST = 20  # levels of tables and lists, more than any setting has
LARGEST = 2**63 - 1  # of TOML's integers, and NumPy's
TOO_DEEP = f"tables and lists are nested more than {DEEPEST} deep, and no setting is; remove brackets"
IN_RANGE = f"use whole numbers up to {LARGEST}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, with or without a byte-order mark.

    Raises
    ------
    ConfigError
        If it cannot be read or is not TOML.
    """
    try:
        if (size := check_file(path).st_size) > LARGEST_FILE:
            raise ConfigError(f"{path} has {size:,} bytes, too many for settings; give an experiment's TOML file")
        text = read_text(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; give the path of an experiment's TOML file"
        ) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return parse_toml(text, str(path))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Read TOML, and check what Python would fail on later.

    Raises
    ------
    ConfigError
        If it is not TOML, or has values that no setting has.
    """
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{source} is not settings: {TOO_DEEP}") from None
    except ValueError:  # Python limits the digits of a number
        raise ConfigError(f"{source} is not settings: a number has too many digits; {IN_RANGE}") from None
    check_values(settings, source)
    return settings


def check_values(settings: Mapping[str, Any], source: str) -> None:
    """Check that settings are of a depth and size that every part of a run can handle.

    Raises
    ------
    ConfigError
        If tables and lists are nested too deep, a whole number has more than 64 bits, or a text is not Unicode.
    """
    level: list[Any] = [settings]
    for _ in range(DEEPEST + 1):
        level = [each for value in level for each in _inside(value, source)]
        if not level:
            return
    raise ConfigError(f"{source}: {TOO_DEEP}")


def _inside(value: Any, source: str) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        shown = value if abs(value) < LARGEST**2 else "a number"
        raise ConfigError(f"{source}: {shown} has more than 64 bits; {IN_RANGE}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{source}: {value!r} is not Unicode; save it as UTF-8") from None
    return ()


def read_key(key: str) -> tuple[str, ...]:
    """Return the parts of a TOML key, which may be dotted and quoted; none if it is not a key."""
    try:
        table: Any = parse_toml(f"{key} = 0", key)
    except ConfigError:
        return ()
    path = []
    while isinstance(table, dict):
        if len(table) != 1:  # a comment, or several lines
            return ()
        [(name, table)] = table.items()
        path.append(name)
    return tuple(path) if table == 0 else ()


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings from Python as TOML would have them: paths are texts, tuples and arrays are lists.

    Raises
    ------
    ConfigError
        If they are nested too deep, or a number or a text is none of TOML's.
    """
    plain = {str(key): _plain(value) for key, value in settings.items()}
    check_values(plain, "settings")
    return plain


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ConfigError(f"settings: {TOO_DEEP}")
    if isinstance(value, Mapping):
        return {str(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, range) and len(value) > LONGEST_RANGE:
        raise ConfigError(f"settings: {value} has {len(value):,} values; give at most {LONGEST_RANGE:,}")
    if isinstance(value, list | tuple | range):
        return [_plain(each, depth + 1) for each in value]
    if callable(getattr(value, "tolist", None)):  # numbers and arrays of NumPy and torch
        return _plain(value.tolist(), depth)
    return str(value) if isinstance(value, Path) else value


def with_settings(settings: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Return nested settings with new values at the given paths; neither argument is changed.

    Raises
    ------
    ConfigError
        If a path goes through something that is not a table.
    """
    result = copy.deepcopy(dict(settings))
    for path, value in changes.items():
        *tables, last = path
        table = result
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{'.'.join(path)!r} cannot be set: {name!r} is not a table")
        table[last] = copy.deepcopy(value)  # which another change may write into
    return result


def path_of(key: str) -> tuple[str, ...]:
    """Return the path of a dotted setting."""
    return tuple(key.split("."))


def value_at(settings: Any, path: Iterable[str]) -> Any:
    """Return the value at a path of nested settings; None if nothing is there."""
    for name in path:
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def is_within(key: str, names: Iterable[str]) -> bool:
    """Tell whether a dotted setting is one of these, or in a table of one of these names."""
    return any(f"{key}.".startswith(f"{each}.") for each in names)


def without(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return dotted settings except these, and those in tables of these names."""
    return {key: value for key, value in settings.items() if not is_within(key, names)}


def short_hash(settings: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that depend on the settings and not on their order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def write_toml(settings: Mapping[str, Any]) -> str:
    """Write settings as TOML; those without a value are left out."""
    return tomli_w.dumps(_without_none(settings))


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value is not None
    }
