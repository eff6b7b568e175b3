"""Every key of an experiment's file, from the records that check it."""

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from markdown import as_markdown, code, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsim.config import Config
from fedsim.config.expectation import Expectation
from fedsim.options import as_toml, parameter_texts, range_of

NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "table"}
PLURALS = {str: "texts", Expectation: "tables"}


def write() -> str:
    """Write a section per table."""
    parts = ["## At the top of the file\n", _rows("", Config)]
    for name, record in _tables("", Config):
        parts += [f"\n## `[{name}]`\n", f"{_first_sentence(record)}\n", _rows(name, record)]
    parts += ["\n## `[[expect]]`\n", f"{_first_sentence(Expectation)}\n", _rows("expect", Expectation)]
    return "\n".join(parts)


def _tables(prefix: str, record: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the tables in a record, each before those inside it."""
    for name, field in record.model_fields.items():
        if _is_table(field.annotation):
            yield prefix + name, field.annotation
            yield from _tables(f"{prefix}{name}.", field.annotation)


def _is_table(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _first_sentence(record: type[BaseModel]) -> str:
    paragraphs = (inspect.getdoc(record) or "").partition("\nParameters\n")[0].split("\n\n")
    paragraphs[0] = paragraphs[0].partition("``: ")[2]
    first = paragraphs[0][:1].upper() + paragraphs[0][1:]
    return "\n\n".join(as_markdown(each) for each in [first, *paragraphs[1:]] if each.strip())


def _rows(prefix: str, record: type[BaseModel]) -> str:
    texts = parameter_texts(record)
    fields = {name: field for name, field in record.model_fields.items() if not _is_table(field.annotation)}
    if lacking := set(fields) - set(texts):
        raise LookupError(
            f"{record.__name__} has no text for {min(lacking)!r}; add it to the Parameters of its docstring"
        )
    return table(
        ("key", "default", "values", "meaning"),
        (
            (
                code(f"{prefix}.{key}" if prefix else key),
                "required" if field.is_required() else _default(field),
                _type(field),
                as_markdown(texts[key]),
            )
            for key, field in fields.items()
        ),
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else "empty" if value == {} else code(as_toml(value))


def _type(field: FieldInfo) -> str:
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
        yield from (code(as_toml(value)) for value in inside)
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
