"""One kind of thing that can be chosen by name: its entries, their options, and how one is made."""

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedsim.config.custom import load_custom
from fedsim.config.names import canonical, known_elsewhere, meant, own_name
from fedsim.config.records import Choice
from fedsim.config.trusted import check_spelling
from fedsim.errors import ConfigError, error_line, in_code_of_the_user, is_of_the_user, system_line
from fedsim.lazy import LazyTable, Named, Place
from fedsim.options import BOUNDS, as_toml, by_name, explain_rule, parameter_texts, range_of, schema_of
from fedsim.shortening import first_few


@dataclass(frozen=True)
class OptionText:
    """An option as a row of text."""

    name: str
    default: str
    range: str
    text: str


@dataclass(frozen=True, eq=False)
class Catalogue:
    """One kind of thing that can be chosen: its entries by name, and where a config chooses one.

    Parameters
    ----------
    table
        Name of the config's table; its setting ``key`` holds the name.
    given
        Parameters that the run supplies and that are therefore no options.
    names
        Names in the literature: the entry that each stands for, and the options that it fixes.
    refused
        Names that somebody may look for here, with the reason why they are no entries.
    makes
        Class of which a custom entry that is a class must be a subclass; without it, a custom entry is a function.
    classes_only
        Whether a custom entry must be such a class.
    """

    entries: Mapping[str, Callable[..., Any]]
    table: str
    key: str
    given: tuple[str, ...]
    names: Mapping[str, Named] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    makes: Place | None = None
    classes_only: bool = False

    def find(self, name: str) -> Callable[..., Any]:
        """Return the entry ``name``, or a custom one given as ``module:attribute``.

        Raises
        ------
        ConfigError
            If there is no such entry, or the module or its attribute cannot be imported.
        """
        self.check_name(name)
        name = self.canonical(name)
        if name in self.entries:
            return self.entries[name]
        return load_custom(name, self._where(name), self.makes, classes_only=self.classes_only)

    def canonical(self, name: str) -> str:
        """Return the name of the entry that is meant: case, spaces, hyphens and underscores do not matter."""
        return self._named(name).entry

    def _named(self, name: str) -> Named:
        found = canonical(name, self.names)
        return self.names[found] if found in self.names else Named(canonical(name, self.entries))

    @property
    def all_names(self) -> list[str]:
        """All names, those in the literature as they are written there, each next to the entry that it stands for."""
        found = []
        for entry in self.entries:
            found += [canonical(entry, self.names), *(name for name, each in self.names.items() if each.entry == entry)]
        return list(dict.fromkeys(found))

    def registered(self, choice: Choice) -> Choice:
        """Return a choice by a name in the literature as that of the entry and the options that it stands for.

        Raises
        ------
        ConfigError
            If an option is set to another value than the one that the name stands for.
        """
        name = getattr(choice, self.key)
        named = self._named(name)
        entry = named.entry
        if name == entry:
            return choice
        for option, value in named.options.items():
            if (found := choice.options.get(option, value)) != value:
                raise ConfigError(
                    f"{self._where(name)} stands for {entry} with {option} = {as_toml(value)}, which {self.table}."
                    f"{option} = {as_toml(found)} contradicts; remove one of them, or use {self.key} = {as_toml(entry)}"
                )
        return choice.model_copy(update={self.key: entry, **named.options})

    def check_name(self, name: str) -> None:
        """Check that there is an entry of that name, or that it can be a custom one; nothing is imported.

        Raises
        ------
        ConfigError
            If there is no such entry.
        """
        if self.canonical(name) in self.entries:
            return
        where = self._where(name)
        if reason := self.refused.get(canonical(name, self.refused)):
            raise ConfigError(f"{where} cannot be used: {reason}")
        module, colon, _ = name.partition(":")
        alike = [known for known in self.entries if known.startswith(f"{module}:")]
        if alike or not colon:
            names = alike or self.all_names
            own = "" if alike or meant(name, names) else own_name(name)
            guess = f"did you mean {found!r}? " if (found := meant(name, names)) else ""
            raise ConfigError(f"{where} is unknown; {guess}known are: {', '.join(names)}{own}")
        check_spelling(name, where)

    def _where(self, name: str) -> str:
        return f"{self.table}.{self.key} = {name!r}"

    def in_code_of(self, name: str) -> AbstractContextManager[None]:
        """Turn an error of the user's code into a `ConfigError` that begins with the name; of a custom entry, any."""
        return in_code_of_the_user(self._where(name), whole=name not in self.entries)

    def options(self, choice: Choice, *, exclude_defaults: bool = False) -> dict[str, Any]:
        """Check the options of a choice and return them, with or without those that are left at their defaults.

        Raises
        ------
        ConfigError
            For an unknown option, a missing one, or a wrong type.
        """
        name = getattr(choice, self.key)
        choice = self.registered(choice)
        schema = self.schema(name)
        self._check_own(schema, choice)
        set_here = choice.model_fields_set.intersection(choice.FILES)
        own = {key: getattr(choice, key) for key in set_here if not self.is_fixed(key, choice)}
        try:
            return schema.model_validate(choice.options | own).model_dump(exclude_defaults=exclude_defaults)
        except ValidationError as error:
            # A misspelt option is the cause of a missing one, so it comes first.
            problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            settings = [*type(choice).model_fields, *schema.model_fields]
            hint = known_elsewhere(f"{self.table}.{option}", (), settings) + self._who_has(option)
            raise ConfigError(f"unknown key '{self.table}.{option}' for {name!r}{hint}")
        if problem["type"] == "missing" and len(problem["loc"]) == 1:
            given = ", ".join(self.given) if self.canonical(name) not in self.entries else ""
            hint = given and f"; set it, or give the parameter the name of what fedsim passes: {given}"
            raise ConfigError(f"'{self.table}.{option}' is missing; {name!r} needs it{hint}")
        rule = explain_rule(problem, schema)
        colon = "" if problem["type"] in BOUNDS else ":"
        raise ConfigError(f"{self.table}.{option} = {as_toml(problem['input'])}{colon} {rule}")

    def _check_own(self, schema: type[BaseModel], choice: Choice) -> None:
        """Check that no option of a custom entry has the name of a setting, whose place it would take."""
        name = getattr(choice, self.key)
        settings = type(choice).model_fields.keys() - set(choice.FILES)
        if self.canonical(name) not in self.entries and (both := sorted(settings & schema.model_fields.keys())):
            raise ConfigError(
                f"{self._where(name)} has an option {both[0]!r}, and every [{self.table}] has a setting of that name; "
                "rename the parameter"
            )

    def is_fixed(self, key: str, choice: Choice) -> bool:
        """Return whether one of ``choice.FILES`` is the table's own: a custom entry may have an option of that name."""
        return key not in self.schema(getattr(choice, self.key)).model_fields

    def schema(self, name: str) -> type[BaseModel]:
        """Return the record that checks the options of an entry."""
        entry = self.find(name)
        try:
            return schema_of(entry, self.given)
        except Exception as error:  # annotations may be anything
            if name in self.entries:
                raise
            reason = error_line(error).partition(". ")[0]  # pydantic adds a paragraph
            raise ConfigError(
                f"{self._where(name)}: its parameters cannot be read as options ({reason}); annotate them "
                "with plain types, such as int, float, str or list[str]"
            ) from error

    def _who_has(self, option: str) -> str:
        """Say which entries have an option."""
        own = [name for name in self.entries if ":" not in name]
        found = [repr(name) for name in own if option in schema_of(self.entries[name], self.given).model_fields]
        if not found:
            return ""
        return (
            f"; {first_few(found, 3)} {'has' if len(found) == 1 else 'have'} it; in a sweep, set it for these alone: "
            f"{self.table} = [{{ {self.key} = {found[0]}, {option} = ... }}, ...]"
        )

    def describe(self, name: str) -> tuple[str, str]:
        """Return the first sentence of an entry's docstring and its references; an entry of fedsim's is not imported.

        What has no references is fedsim's own.
        """
        entries, named = self.entries, self.names.get(name)
        if named and named.place:
            return _describe(named.place.docstring())
        name = self.canonical(name)
        if isinstance(entries, LazyTable) and name in entries.places:
            return _describe(entries.places[name].docstring())
        return _describe(inspect.getdoc(self.find(name)) or "")

    def described_options(self, name: str) -> list[OptionText]:
        """Return an entry's options as texts for a table."""
        entry = self.find(name)
        texts = parameter_texts(entry)
        return [
            OptionText(
                option,
                "required" if info.is_required() else "unset" if info.default is None else as_toml(info.default),
                range_of(info.metadata).removeprefix("must be ") or _choices(info.annotation),
                info.description or texts.get(option, ""),
            )
            for option, info in self.schema(name).model_fields.items()
        ]

    def label(self, choice: Choice, changed: Iterable[str] | None = None) -> str:
        """Return the name by which a choice is shown, with its other changed options, such as ``FedProx(mu=0.1)``.

        What has a name in the literature is shown by it.

        Parameters
        ----------
        changed
            Names of the options that differ from their defaults, if they are known: the entry is not imported then.
        """
        name = self.name_of(choice)
        fixed = self._named(name).options
        options = self._changed_options(choice, changed)
        return _with_options(name, {key: options[key] for key in options if key not in fixed})

    def registered_label(self, choice: Choice, changed: Iterable[str] | None = None) -> str:
        """Return an entry's name with its changed options, such as ``layer_set(shared=body)``, as `label` does."""
        return _with_options(self.canonical(getattr(choice, self.key)), self._changed_options(choice, changed))

    def name_of(self, choice: Choice) -> str:
        """Return the name in the literature of what is chosen, or else the entry's."""
        choice = self.registered(choice)
        entry = getattr(choice, self.key)
        found = [
            name
            for name, known in self.names.items()
            if known.entry == entry and known.options.items() <= choice.options.items()
        ]
        return found[0] if found else entry

    def _stands_for(self, choice: Choice) -> str:
        """Return a name in the literature for a message, with its options, which the user may not have written."""
        name = self.name_of(choice)
        if name not in self.names:
            return ""
        written = ", ".join(f"{key} = {as_toml(value)}" for key, value in self.names[name].options.items())
        return f"{name}, which is {getattr(choice, self.key)} with {written}: " if written else f"{name}: "

    def is_called(self, choice: Choice, name: str) -> bool:
        """Return whether a name, in any spelling, is that of the chosen entry or of it with its options."""
        choice, named = self.registered(choice), self._named(name)
        return named.entry == getattr(choice, self.key) and named.options.items() <= choice.options.items()

    def _changed_options(self, choice: Choice, changed: Iterable[str] | None) -> dict[str, Any]:
        choice = self.registered(choice)
        fixed = choice.model_dump(exclude={self.key}, include=set(type(choice).model_fields), exclude_defaults=True)
        if changed is None:
            options = self.options(choice, exclude_defaults=True) | fixed
        else:
            options = {name: choice.options[name] for name in changed if name in choice.options} | fixed
        return options

    def make(self, choice: Choice, *given: Any, **settings: Any) -> Any:
        """Call the chosen entry with what the run gives, its options and further settings.

        Raises
        ------
        ConfigError
            If the entry rejects a value, or does not find a file.
        """
        return self.maker(choice)(*given, **settings)

    def maker(self, choice: Choice) -> Callable[..., Any]:
        """Check the options of a choice once, and return a function that calls the entry with them as `make` does.

        Raises
        ------
        ConfigError
            For an option that `options` refuses.
        """
        choice = self.registered(choice)
        name = getattr(choice, self.key)
        entry, options = by_name(self.find(name), self.given), self.options(choice)

        def make(*given: Any, **settings: Any) -> Any:
            with self.in_code_of(name):
                try:
                    return entry(*given, **options, **settings)
                except (ValueError, OSError, MemoryError) as error:
                    if is_of_the_user(error):
                        raise
                    reason = system_line(error) if isinstance(error, OSError) else error
                    raise ConfigError(f"[{self.table}] {self._stands_for(choice)}{reason}") from error
                except TypeError as error:
                    if len(traceback.extract_tb(error.__traceback__)) > 2:  # `make`, and what `by_name` returns
                        raise  # from inside the entry, not from the call
                    names = ", ".join(self.given) or "its options"
                    raise ConfigError(f"{self._where(name)} cannot be called with {names}: {error}") from error

        return make


def _choices(annotation: Any) -> str:
    """Return the values that an option may have, if they are listed."""
    listed = get_args(annotation) if get_origin(annotation) is Literal else ()
    return ", ".join(as_toml(value) for value in listed)


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key}={value}" for key, value in options.items())
    return name + (f"({text})" if text else "")


def _describe(docstring: str) -> tuple[str, str]:
    docstring = docstring.replace("`", "")
    _, _, references = docstring.partition("References\n----------\n")
    return docstring.partition("\n")[0], references.partition("\n\n")[0].replace("\n", " ") or "fedsim"
