"""Settings as nested tables: read from TOML, changed by dotted keys, written and hashed."""

import codecs
import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.errors import ConfigError

Changes = Mapping[tuple[str, ...], Any]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, with or without a byte-order mark.

    Raises
    ------
    ConfigError
        If it cannot be read or is not TOML.
    """
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
            raise ConfigError(f"{path} is UTF-16 text; save it as UTF-8")
        text = content.decode("utf-8").lstrip("\ufeff")  # with which some editors begin a file
        return tomllib.loads(text.replace("\r\n", "\n").replace("\r", "\n"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; give the path of an experiment's TOML file"
        ) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason}, line {line}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """Read ``key.of.setting=value`` as on the command line; key and value are TOML.

    Returns
    -------
    path, value
        The tables and the key, and what it is set to.

    Raises
    ------
    ConfigError
        If there is no key, or the value is not TOML.
    """
    key, equals, value = text.partition("=")
    path = read_key(key)
    if not equals or not path:
        raise ConfigError(f"--set {text!r} must be KEY=VALUE, for instance --set local.lr=0.01")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(
            f"--set {text!r}: {value!r} is not a TOML value; a string needs quotes, "
            f"for instance --set '{key.strip()}=\"{value.strip()}\"'"
        ) from None


def read_key(key: str) -> tuple[str, ...]:
    """Return the parts of a TOML key, which may be dotted and quoted; none if it is not a key."""
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path = []
    while isinstance(table, dict):
        [(name, table)] = table.items()
        path.append(name)
    return tuple(path)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings from Python as TOML would have them: paths are texts, tuples and arrays are lists."""
    return {str(key): _plain(value) for key, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain_settings(value)
    if isinstance(value, list | tuple | range):
        return [_plain(each) for each in value]
    if callable(getattr(value, "tolist", None)):  # numbers and arrays of NumPy and torch
        return _plain(value.tolist())
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
        table[last] = value
    return result


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
