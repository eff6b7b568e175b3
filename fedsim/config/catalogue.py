"""One kind of thing that can be chosen by name: its entries, their options, and how one is made."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.config.tables import Choice
from fedsim.errors import ConfigError
from fedsim.options import explain_rule, schema_of, shown, suggest


@dataclass(frozen=True, eq=False)
class Catalogue:
    """One kind of thing that can be chosen: its entries by name, and where a config chooses one.

    Parameters
    ----------
    table
        Name of the config's table; its setting ``key`` holds the name.
    given
        Parameters that the run supplies and that are therefore no options.
    refused
        Names that somebody may look for here, with the reason why they are no entries.
    """

    entries: Mapping[str, Callable[..., Any]]
    table: str
    key: str
    given: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Callable[..., Any]:
        """Return the entry ``name``, or the user's own as ``module:attribute``.

        Raises
        ------
        ConfigError
            If there is no such entry, or the module or its attribute cannot be imported.
        """
        if name in self.entries:
            return self.entries[name]
        where = f"{self.table}.{self.key} = {name!r}"
        if name in self.refused:
            raise ConfigError(f"{where} cannot be used: {self.refused[name]}")
        module, colon, attribute = name.partition(":")
        alike = [known for known in self.entries if known.startswith(f"{module}:")]
        if colon and not alike:
            try:
                entry = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise ConfigError(f"{where} cannot be imported from {Path.cwd()}: {error}") from error
            if not callable(entry):
                raise ConfigError(f"{where} must be a function or a class, and is a {type(entry).__name__}")
            return entry
        raise ConfigError(f"{where} is unknown{suggest(name, alike or self.entries)}")

    def options(self, choice: Choice, *, exclude_defaults: bool = False) -> dict[str, Any]:
        """Check the options of a choice and return them, with or without those that are left at their defaults.

        Raises
        ------
        ConfigError
            For an unknown option, a missing one, or a wrong type.
        """
        name = getattr(choice, self.key)
        schema = schema_of(self.find(name), self.given)
        try:
            return schema.model_validate(choice.options).model_dump(exclude_defaults=exclude_defaults)
        except ValidationError as error:
            # A misspelt option is the cause of a missing one, so it comes first.
            problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            settings = [*type(choice).model_fields, *schema.model_fields]
            raise ConfigError(f"unknown key '{self.table}.{option}' for {name!r}{suggest(option, settings)}")
        if problem["type"] == "missing" and len(problem["loc"]) == 1:
            raise ConfigError(f"'{self.table}.{option}' is missing; {name!r} needs it")
        raise ConfigError(f"{self.table}.{option} = {shown(problem['input'])}: {explain_rule(problem)}")

    def signature(self, name: str) -> str:
        """Return an entry's options with their defaults, such as ``alpha, min_size = 10``."""
        options = []
        for option, info in schema_of(self.find(name), self.given).model_fields.items():
            default = "unset" if info.default is None else shown(info.default)
            options.append(option if info.is_required() else f"{option} = {default}")
        return ", ".join(options)

    def label(self, choice: Choice) -> str:
        """Return a short name of a choice with its changed options, such as ``layer_set(shared=body)``."""
        fixed = choice.model_dump(exclude={self.key}, include=set(type(choice).model_fields), exclude_defaults=True)
        options = self.options(choice, exclude_defaults=True) | fixed
        text = ", ".join(f"{key}={value}" for key, value in options.items())
        return getattr(choice, self.key) + (f"({text})" if text else "")

    def make(self, choice: Choice, *given: Any, **settings: Any) -> Any:
        """Call the chosen entry with what the run gives, its options and further settings.

        Raises
        ------
        ConfigError
            If the entry rejects a value, or does not find a file.
        """
        entry = self.find(getattr(choice, self.key))
        try:
            return entry(*given, **self.options(choice), **settings)
        except (ValueError, OSError) as error:
            raise ConfigError(f"[{self.table}] {error}") from error
        except TypeError as error:
            if len(traceback.extract_tb(error.__traceback__)) > 1:
                raise  # from inside the entry, not from the call
            names = ", ".join(self.given) or "its options"
            raise ConfigError(f"[{self.table}] {entry.__name__} cannot be called with {names}: {error}") from error


def describe(entry: Callable[..., Any]) -> tuple[str, str]:
    """Return the first sentence of an entry's docstring and its references; what has none is fedsim's own."""
    docstring = (inspect.getdoc(entry) or "").replace("`", "")
    _, _, references = docstring.partition("References\n----------\n")
    return docstring.partition("\n")[0], references.partition("\n\n")[0].replace("\n", " ") or "fedsim"
