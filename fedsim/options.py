"""Options read from a signature, and the words for one that is wrong."""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cache, partial, wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, Strict, create_model

Entry = TypeVar("Entry", bound=Callable[..., Any])
# The attribute of a function or record that holds another, whose options it takes too.
FORWARDED = "takes_options_of"
BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
SINGLE = ("int_type", "float_type", "string_type", "bool_type", "literal_error")


@cache
def schema_of(entry: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """Return a record of an entry's options: what it declares, or its parameters less those that the run gives.

    A parameter whose default no file can have, such as a class, is no option.
    """
    if declares := getattr(entry, "option_schema", None):
        record: type[BaseModel] = declares()
        return record
    hints = get_type_hints(_annotated(entry), include_extras=True)
    fields: dict[str, Any] = {}
    if further := getattr(entry, FORWARDED, None):
        hints = get_type_hints(further, include_extras=True) | hints
    for name, parameter in inspect.signature(entry).parameters.items():
        if name not in given and can_be_set(parameter):
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            hint = _as_written(hints.get(name, Any))
            # TOML has lists only, so a tuple is the one type that is not taken strictly.
            fields[name] = (hint, Field(default, strict=False) if get_origin(hint) is tuple else Field(default))
    return create_model("Options", __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def _annotated(entry: Callable[..., Any]) -> Any:
    """Return the function that has the types of what an entry takes."""
    while isinstance(entry, partial):
        entry = entry.func
    if isinstance(entry, type):
        return entry.__init__  # type: ignore[misc]
    return entry if inspect.isroutine(entry) else type(entry).__call__


def can_be_set(parameter: inspect.Parameter) -> bool:
    """Tell whether a file of settings can have the value of a parameter."""
    if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return False
    return parameter.default is parameter.empty or _is_plain(parameter.default)


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | Enum | Path)


def by_name(entry: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Return a function that takes values in the order of ``names``, and gives an entry those that it asks for.

    The entry may have its parameters in another order, and need not have all. One that takes values by position only,
    or any number of them, gets all in their order.
    """
    parameters = inspect.signature(entry).parameters
    kinds = {each.kind for each in parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    by_position = bool(kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL})

    def call(*values: Any, **settings: Any) -> Any:
        if by_position:
            return entry(*values, **settings)
        given = {name: each for name, each in zip(names, values, strict=False) if takes_any or name in parameters}
        return entry(**given, **settings)

    return call


def with_options_of(further: Callable[..., Any]) -> Callable[[Entry], Entry]:
    """Declare that a function also takes the keyword-only parameters of another, as options after its own.

    They are described where the other has them. A call with any other option raises a `TypeError` that names it.
    """

    def decorate(function: Entry) -> Entry:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = [each for each in inspect.signature(further).parameters.values() if each.kind is each.KEYWORD_ONLY]
        known = {each.name for each in own} | {each.name for each in taken}
        options = [each.name for each in (*own, *taken) if each.kind is each.KEYWORD_ONLY]

        @wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given.keys() - known:
                raise TypeError(f"{name} = {given[name]!r} is no option of {function.__name__}{suggest(name, options)}")
            return function(*args, **given)

        checked.__signature__ = signature.replace(parameters=[*own, *taken])  # type: ignore[attr-defined]
        setattr(checked, FORWARDED, further)
        return cast("Entry", checked)

    return decorate


def _as_written(hint: Any) -> Any:
    """Return a type that takes texts for paths, which TOML does not have, also in lists and where it may be unset."""
    if hint is Path:
        return Annotated[Path, Strict(False)]
    inside = tuple(_as_written(each) for each in get_args(hint))
    if inside == get_args(hint) or get_origin(hint) in (Annotated, Literal):
        return hint
    return Union[inside] if get_origin(hint) in (Union, UnionType) else get_origin(hint)[inside]  # noqa: UP007 (a tuple)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'? known are: a, b`` for an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"; {guess}known are: {', '.join(names)}"


def one_of(names: Iterable[str], remedy: str = "") -> Callable[[str], str]:
    """Return a check that a text is one of some names, for pydantic; its message may end with a remedy."""
    known = list(names)

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}{remedy}")
        return value

    return check


def auto_or_at_least(least: int) -> Callable[[object], object]:
    """Return a check that a value is ``auto`` or a whole number of at least ``least``, for pydantic."""

    def check(value: object) -> object:
        if value != "auto" and not (type(value) is int and value >= least):
            raise ValueError(f'must be "auto" or a whole number of at least {least}')
        return value

    return check


def explain_rule(problem: Mapping[str, Any], record: type[BaseModel] | None = None) -> str:
    """Return the rule that a value broke, from one of pydantic's errors, such as ``must be greater than 0``.

    Parameters
    ----------
    record
        The options that were checked: then the rule holds all bounds of the option, and what it is.
    """
    given = problem["input"]
    rules = {
        "dict_type": "must be a table, as in [sweep] with seed = [0, 1]",
        "model_type": "must be a table, as in [local] with lr = 0.1",
        "too_short": "must have at least one value",
        "tuple_type": f"must be a list, such as {as_toml([given] if isinstance(given, str | int | float) else [1, 2])}",
        "missing": "must have more values",
    }
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should ", "must ", 1)
    text = text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    field = record.model_fields.get(str(problem["loc"][0])) if record else None
    if field and problem["type"] in BOUNDS:
        text = range_of(field.metadata) or text
    text = rules.get(problem["type"]) or text
    if isinstance(given, list) and problem["type"] in SINGLE:
        text += "; to run each of several values, list them in [sweep]"
    return f"{text} ({field.description.rstrip('.')})" if field and field.description else text


def range_of(metadata: Iterable[object]) -> str:
    """Return the bounds of an annotated type as a rule, such as ``must be at least 0 and less than 1``."""
    words = {Gt: ("gt", "greater than"), Ge: ("ge", "at least"), Lt: ("lt", "less than"), Le: ("le", "at most")}
    known = list(metadata)
    bounds = [
        f"{text} {_number(getattr(bound, attribute))}"
        for kind, (attribute, text) in words.items()
        for bound in known
        if isinstance(bound, kind)
    ]
    return "must be " + " and ".join(bounds) if bounds else ""


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_toml(value: Any) -> str:
    """Write a value as TOML would, for a message."""
    return json.dumps(value, default=str)


def parameter_texts(entry: Callable[..., Any]) -> dict[str, str]:
    """Return the texts of the parameters in a docstring, as written, by their names, which may share one."""
    _, _, section = (inspect.getdoc(entry) or "").partition("Parameters\n----------\n")
    section = re.split(r"^\w+\n-+$", section, maxsplit=1, flags=re.MULTILINE)[0]
    texts: dict[str, str] = {}
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?: +.*\n?|\n(?= ))+)", section, re.MULTILINE):
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    further = getattr(entry, FORWARDED, None)
    return texts if further is None else parameter_texts(further) | texts
