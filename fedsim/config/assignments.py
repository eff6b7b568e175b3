"""Settings as they are typed on the command line: ``strategy.name=FedPer``, ``local.lr=0.1``, ``sweep.seed=[0, 1]``."""

import tomllib
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from fedsim.config.config import Config
from fedsim.config.tables import TuneConfig
from fedsim.config.toml import parse_toml, path_of, read_key
from fedsim.errors import ConfigError
from fedsim.options import as_toml

LISTS = ("sweep", "tune")  # whose settings are lists of values of other settings
# What begins like this and is not TOML is unfinished rather than a text.
Kind = Literal["text", "texts", "other", "unknown"]  # of what a setting holds
QUOTES, BRACKETS = ('"', "'"), ("[", "{")


def parse_assignment(text: str, *, is_text: bool = False) -> tuple[tuple[str, ...], Any]:
    """Read ``key.of.setting=value`` as on the command line: the value is TOML, and a text needs no quotes.

    What is not TOML is taken as text, in a list each value for itself; a setting that holds nothing but a text is one
    whatever it looks like. Whether the text is right for the setting is checked with all others.

    Parameters
    ----------
    is_text
        Whether the setting holds a text only; of most settings that is known without it.

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
    path = setting_path(key)
    if not equals or not path:
        raise ConfigError(f"--set {text!r} must be KEY=VALUE, for instance --set local.lr=0.01")
    return path, _value(path, written.strip(), text, "text" if is_text else _kind_of(path))


def setting_path(key: str) -> tuple[str, ...]:
    """Return the tables and the name of a setting that is written with dots; none if it is not a key.

    In ``[sweep]`` and ``[tune]``, settings keep their dots.
    """
    path = read_key(key)
    return (path[0], ".".join(path[1:])) if len(path) > 2 and path[0] in LISTS else path


def parse_assignments(texts: Iterable[str]) -> tuple[dict[tuple[str, ...], Any], dict[tuple[str, ...], Any]]:
    """Read several assignments.

    Returns
    -------
    changes, as_texts
        Values by path, and the other values of options that turn out to hold a text only, such as the layer ``1``.
    """
    changes: dict[tuple[str, ...], Any] = {}
    as_texts: dict[tuple[str, ...], Any] = {}
    for text in texts:
        path, value = parse_assignment(text)
        changes.pop(path, None)  # what is set again is set last
        changes[path] = value
        as_texts.pop(path, None)
        if _kind_of(path) == "unknown" and (other := parse_assignment(text, is_text=True)[1]) != value:
            as_texts[path] = other
    return changes, as_texts


def _value(path: tuple[str, ...], written: str, source: str, kind: Kind) -> Any:
    if not written:
        raise ConfigError(f"--set {source!r} has no value; an empty text is --set {'.'.join(path)}='\"\"'")
    is_list = path[0] in LISTS
    found = _toml(written, source)
    if found is None and not written.isprintable():
        raise _not_toml(path, written, source)
    if kind == "text" and not is_list:
        if isinstance(found, str):
            return found
        if not written.startswith(QUOTES):
            return written
    if isinstance(found, list) and kind in ("text", "texts"):
        return _as_texts(found, written)
    if found is not None:
        is_one = kind == "texts" and not is_list and not isinstance(found, dict)
        return [found if isinstance(found, str) else written] if is_one else found
    if written.startswith("[") and written.endswith("]"):
        return [_item(each.strip(), kind, source) for each in written[1:-1].split(",") if each.strip()]
    if written.startswith((*QUOTES, *BRACKETS)):
        raise _not_toml(path, written, source)
    return [each.strip() for each in written.split(",")] if kind == "texts" and not is_list else written


def _item(written: str, kind: Kind, source: str) -> Any:
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


def _as_texts(values: list[Any], written: str) -> list[Any]:
    """Return a list of texts, in which numbers are as they are written, as far as that can be told."""
    parts = written[1:-1].rstrip(", ").split(",")
    if len(parts) != len(values) or not written.endswith("]"):
        parts = [each if isinstance(each, str) else as_toml(each) for each in values]
    kept = (str, dict, list)
    return [each if isinstance(each, kept) else part.strip() for each, part in zip(values, parts, strict=True)]


def _kind_of(path: tuple[str, ...]) -> Kind:
    """Return what a setting holds, as far as it is not an option of what is chosen by name.

    Of ``[sweep]`` and ``[tune]``, what the settings hold that are listed.
    """
    if path[0] in LISTS and len(path) == 2 and path[1] not in TuneConfig.model_fields:
        path = path_of(path[1])
    table: Any = Config
    for name in path:
        fields = table.model_fields if isinstance(table, type) and issubclass(table, BaseModel) else {}
        if name not in fields:
            return "unknown"
        table = fields[name].annotation
    return "text" if is_text(table) else "texts" if _is_list_of_text(table) else "other"


def is_text(hint: Any) -> bool:
    """Return whether a type holds texts only, or nothing."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return is_text(inside[0])
    if origin is Literal:
        return all(isinstance(each, str) for each in inside)
    if origin in (Union, UnionType):
        return all(is_text(each) for each in inside if each is not NoneType)
    return hint is str


def _is_list_of_text(hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_list_of_text(inside[0])
    return origin in (tuple, list) and all(is_text(each) for each in inside if each is not Ellipsis)
