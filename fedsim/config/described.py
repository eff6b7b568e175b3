"""Every key of an experiment's file in words, from the records that check it."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsim.config.config import Config
from fedsim.config.expectation import Expectation
from fedsim.options import as_toml, parameter_texts, range_of

TOP = "top"  # the keys before any table
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "table"}
PLURALS = {str: "texts", Expectation: "tables"}


@dataclass(frozen=True)
class KeyText:
    """A key as a row of text; what is code is in double backticks."""

    key: str
    default: str
    values: str
    text: str

    @property
    def heading(self) -> str:
        """The key with its default and its values, in a line."""
        default = f" = {self.default}" if self.default.startswith("`") else f" ({self.default})"
        return f"{self.key}{default}: {self.values}"


@dataclass(frozen=True)
class TableText:
    """A table: its title, such as ``[local]``, what it is for, in paragraphs, and its keys."""

    title: str
    about: list[str]
    keys: list[KeyText]


def described_tables() -> dict[str, TableText]:
    """Return every table by its name, `TOP` first, each before those inside it.

    Raises
    ------
    LookupError
        If a record does not describe a key.
    """
    found = {TOP: TableText("At the top of the file", ["What holds for the whole run."], _keys("", Config))}
    for name, record in _tables("", Config):
        found[name] = TableText(f"[{name}]", _about(record), _keys(name, record))
    return found | {"expect": TableText("[[expect]]", _about(Expectation), _keys("expect", Expectation))}


def _tables(prefix: str, record: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in record.model_fields.items():
        if _is_table(field.annotation):
            yield prefix + name, field.annotation
            yield from _tables(f"{prefix}{name}.", field.annotation)


def _is_table(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _about(record: type[BaseModel]) -> list[str]:
    """Return the paragraphs before the parameters, without the table's name."""
    first, *others = (inspect.getdoc(record) or "").partition("\nParameters\n")[0].split("\n\n")
    first = first.partition("``: ")[2]
    return [" ".join(each.split()) for each in (first[:1].upper() + first[1:], *others) if each.strip()]


def _keys(prefix: str, record: type[BaseModel]) -> list[KeyText]:
    texts = parameter_texts(record)
    fields = {name: field for name, field in record.model_fields.items() if not _is_table(field.annotation)}
    if lacking := set(fields) - set(texts):
        raise LookupError(
            f"{record.__name__} has no text for {min(lacking)!r}; add it to the Parameters of its docstring"
        )
    return [
        KeyText(f"{prefix}.{key}" if prefix else key, _default(field), _values(field), " ".join(texts[key].split()))
        for key, field in fields.items()
    ]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else "empty" if value == {} else f"``{as_toml(value)}``"


def _values(field: FieldInfo) -> str:
    rule = range_of(field.metadata).removeprefix("must be ")
    return ", ".join(part for part in (_listed(_words(field.annotation)), rule) if part)


def _listed(words: Iterator[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _words(annotation: Any) -> Iterator[str]:
    """Yield what a setting can be, in the words of TOML."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        rule = range_of(_constraints(inside[1:])).removeprefix("must be ")
        yield _listed(_words(inside[0])) + (f" ({rule})" if rule else "")
    elif origin is Literal:
        yield from (f"``{as_toml(value)}``" for value in inside)
    elif origin in (Union, UnionType):
        for each in inside:
            if each is not type(None):
                yield from _words(each)
    elif origin in (tuple, list):
        yield f"list of {PLURALS.get(inside[0]) or _listed(_words(inside[0]))}"
    elif origin is dict:
        yield "table"
    else:
        yield "table" if _is_table(annotation) else NAMES[annotation]


def _constraints(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else (each,)
