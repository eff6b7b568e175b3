"""Options that a method declares in its class, which check, document and list themselves."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fedsim.errors import ConfigError
from fedsim.options import as_toml, can_be_set, explain_rule, suggest
from fedsim.shortening import a_type
from fedsim.training import ClientRule

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
GIVEN = ("model", "inputs")  # parameters of a method's constructor that the run supplies
ATTRIBUTES = (  # of each method, which an option of the same name would lose its value to
    *("layers", "group", "parameters", "model", "inputs", "server_data", "training_loss", "global_model", "memory"),
    *("clients", "exchange"),
)


@dataclass(frozen=True)
class Declared:
    """An option of a class: its default and what it is.

    Parameters
    ----------
    text
        Begins with a noun that says what the option is.
    name
        Name of the option where that is not the attribute's.
    by_run
        Whether the run supplies it, so that it is no option of the ``[strategy]`` table.
    """

    default: Any
    text: str
    name: str = ""
    by_run: bool = False


def Option(default: Any, text: str) -> Any:  # noqa: N802 (reads like the field that it declares)
    """Declare an option of a method: ``mu: NonNegative = Option(0.01, "Weight of the proximal term.")``.

    Its type checks it, in a config as well as in Python; its text documents it in ``fedsim list``.
    """
    return Declared(default, text)


def Setting(default: Any, text: str) -> Any:  # noqa: N802
    """Declare a setting that every method has and the run supplies."""
    return Declared(default, text, by_run=True)


def declarations(owner: type) -> dict[str, Declared]:
    """Return the options of a class and its bases by attribute, those of the base first.

    A class that sets the attribute of a base's option to a plain value changes its default.
    """
    found: dict[str, Declared] = {}
    for base in reversed(owner.__mro__):
        for attribute, value in vars(base).items():
            if isinstance(value, Declared):
                found[attribute] = value
            elif attribute in found and not callable(value):
                found[attribute] = replace(found[attribute], default=value)
    # The layer group comes last, as every method that has one has the same.
    return dict(sorted(found.items(), key=lambda item: bool(item[1].name)))


def declared(owner: type) -> dict[str, tuple[str, Any, Declared]]:
    """Return attribute, type and declaration of each option of a class by its name."""
    hints, ordered = get_type_hints(owner, include_extras=True), declarations(owner).items()
    return {
        each.name or attribute: (attribute, str if each.name else hints[attribute], each) for attribute, each in ordered
    }


def schema(owner: type, *, by_run: bool = False) -> type[BaseModel]:
    """Return the record that checks the options of a class, or also those that the run supplies.

    Parameters of its constructor are options too.
    """
    fields: dict[str, Any] = {}
    for name, (_, hint, option) in declared(owner).items():
        if by_run or not option.by_run:
            fields[name] = (hint, _field(hint, option.default, option.text))
    hints = get_type_hints(owner.__init__, include_extras=True)  # type: ignore[misc]
    for name, parameter in inspect.signature(owner).parameters.items():
        if can_be_set(parameter) and not by_run and name not in (*GIVEN, *declared(owner)):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), _field(hints.get(name), default, ""))
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("Options", __config__=config, **fields)


def _field(hint: Any, default: Any, text: str) -> Any:
    # TOML has lists only, so a tuple is the one type that is not taken strictly.
    return Field(default, description=text or None, strict=False if get_origin(hint) is tuple else None)


def check_options(owner: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of each option of a class, by name: the given one, or its default.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value of a wrong type or out of range.
    """
    known = declared(owner)
    for name in (name for name in options if name not in known):
        raise TypeError(f"{owner.__name__} has no option {name!r}{suggest(name, known)}")
    record = schema(owner, by_run=True)
    try:
        values = record.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise ValueError(f"{name} = {as_toml(problem['input'])} {explain_rule(problem, record)}") from None
    return {name: getattr(values, name) for name in known}


def check_method(strategy: type, rule: object) -> None:
    """Check the options that a strategy declares, that it names its clients' rule, and that this reads none besides.

    Raises
    ------
    ConfigError
        If something is wrong.
    """
    _check_declared(strategy)
    _check_client_rule(strategy, rule)


def _check_declared(owner: type) -> None:
    """Check that the options of a class have types, and names that nothing else of a method has."""
    hints = inspect.get_annotations(owner)
    for name, option in vars(owner).items():
        if not isinstance(option, Declared) or option.by_run or option.name:
            continue
        before = getattr(super(owner, owner), name, None)
        by_run = isinstance(before, Declared) and before.by_run
        if name in ATTRIBUTES or by_run or callable(before) or isinstance(before, property):
            raise ConfigError(
                f"{owner.__name__} declares an option {name!r}, which every method has; rename the option"
            )
        if name not in hints and not isinstance(before, Declared):
            text = f"{name}: float = Option(...)"
            raise ConfigError(f"{owner.__name__} declares an option {name!r} without a type; write one, as in {text}")


def _check_client_rule(strategy: type, rule: object) -> None:
    if not (isinstance(rule, type) and issubclass(rule, ClientRule)):
        raise ConfigError(
            f"{strategy.__name__}.client_rule must be the class of the clients' rule, as in client_rule = MyRule, and "
            f"is {a_type(rule)}"
        )
    known = [option.name or attribute for attribute, option in declarations(strategy).items()]
    needed = {name for name in rule.reads() if not hasattr(rule, name)}
    for name in sorted(needed - {*known, *inspect.signature(strategy).parameters}):
        where = f"{rule.__name__} reads the option {name!r}, which {strategy.__name__} does not declare"
        raise ConfigError(f"{where}{suggest(name, known)}")
