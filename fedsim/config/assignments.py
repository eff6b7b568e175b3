"""Settings as they are typed on the command line: ``strategy.name=FedPer``, ``local.lr=0.1``, ``sweep.seed=[0, 1]``."""

import tomllib
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from fedsim.config.config import Config
from fedsim.config.tables import TuneConfig
from fedsim.config.toml import parse_toml, read_key
from fedsim.errors import ConfigError
from fedsim.options import as_toml

LISTS = ("sweep", "tune")  # whose settings are lists of values of other settings
# What begins like this and is not TOML is unfinished rather than a text.
QUOTES, BRACKETS = ('"', "'"), ("[", "{")


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """Read ``key.of.setting=value`` as on the command line: the value is TOML, and a text needs no quotes.

    What is not TOML is taken as text, in a list each value for itself; a setting that holds nothing but a text is one
    whatever it looks like. Whether the text is right for the setting is checked with all others.

    Returns
    -------
    path, value
        The tables and the key, and what it is set to.

    Raises
    ------
    ConfigError
        If there is no key or no value, or the value is neither TOML nor a text.
    """
    key, equals, written = text.partition("=")
    path = read_key(key)
    if not equals or not path:
        raise ConfigError(f"--set {text!r} must be KEY=VALUE, for instance --set local.lr=0.01")
    if path[0] in LISTS and len(path) > 2:
        path = (path[0], ".".join(path[1:]))
    return path, _value(path, written.strip(), text)


def _value(path: tuple[str, ...], written: str, source: str) -> Any:
    if not written:
        raise ConfigError(f"--set {source!r} has no value; an empty text is --set {'.'.join(path)}='\"\"'")
    kind, is_list = _kind_of(path), path[0] in LISTS
    found = _toml(written, source)
    if found is None and not written.isprintable():
        raise _not_toml(path, written, source)
    if kind == "text" and not is_list:
        if isinstance(found, str):
            return found
        if not written.startswith(QUOTES):
            return written
    if found is not None:
        return [found] if kind == "texts" and isinstance(found, str) and not is_list else found
    if written.startswith("[") and written.endswith("]"):
        return [_item(each.strip(), kind, source) for each in written[1:-1].split(",") if each.strip()]
    if written.startswith((*QUOTES, *BRACKETS)):
        raise _not_toml(path, written, source)
    return [each.strip() for each in written.split(",")] if kind == "texts" and not is_list else written


def _item(written: str, kind: str, source: str) -> Any:
    found = _toml(written, source)
    if found is None and written.startswith((*QUOTES, *BRACKETS)):
        raise ConfigError(f"--set {source!r}: {written!r} in the list is not a TOML value; put texts in quotes")
    return written if found is None or (kind in ("text", "texts") and not isinstance(found, str)) else found


def _not_toml(path: tuple[str, ...], written: str, source: str) -> ConfigError:
    quoted = f"--set '{'.'.join(path)}={as_toml(written)}'"
    return ConfigError(f"--set {source!r}: {written!r} is not a TOML value; close it, or for a text write {quoted}")


def _toml(written: str, source: str) -> Any:
    """Return a TOML value, or None if it is none."""
    try:
        found = parse_toml(f"value = {written}", f"--set {source!r}")
    except ConfigError as error:
        if not isinstance(error.__cause__, tomllib.TOMLDecodeError):
            raise
        return None
    return found["value"] if list(found) == ["value"] else None


def _kind_of(path: tuple[str, ...]) -> Literal["text", "texts", "other", "unknown"]:
    """Return what a setting holds, as far as it is not an option of what is chosen by name.

    Of ``[sweep]`` and ``[tune]``, what the settings hold that are listed.
    """
    if path[0] in LISTS and len(path) == 2 and path[1] not in TuneConfig.model_fields:
        path = tuple(path[1].split("."))
    table: Any = Config
    for name in path:
        fields = table.model_fields if isinstance(table, type) and issubclass(table, BaseModel) else {}
        if name not in fields:
            return "unknown"
        table = fields[name].annotation
    return "text" if _is_text(table) else "texts" if _is_list_of_text(table) else "other"


def _is_text(hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_text(inside[0])
    if origin is Literal:
        return all(isinstance(each, str) for each in inside)
    if origin in (Union, UnionType):
        return all(_is_text(each) for each in inside if each is not NoneType)
    return hint is str


def _is_list_of_text(hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_list_of_text(inside[0])
    return origin in (tuple, list) and all(_is_text(each) for each in inside if each is not Ellipsis)
