"""What is imported when it is first used: entries of a table by name, and what a room shows at its door."""

import ast
import gc
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Named:
    """What a name in the literature stands for.

    Parameters
    ----------
    entry
        Name of the entry in its table.
    options
        The options that the name fixes.
    place
        Where a name that fixes options is documented.
    """

    entry: str
    options: Mapping[str, Any] = field(default_factory=dict)
    place: "Place | None" = None


@dataclass(frozen=True)
class Place:
    """Where something is defined; without a name, the module itself."""

    module: str
    name: str = ""

    def load(self) -> Any:
        """Import it."""
        with _no_collection():
            module = importlib.import_module(self.module)
        return getattr(module, self.name) if self.name else module

    def docstring(self) -> str:
        """Return its docstring, read from the source where it is written there: nothing is imported then.

        A class without references has those of its base in the same file.
        """
        for node in _parse(self.module):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == self.name:
                text = ast.get_docstring(node) or ""
                bases = [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
                near = {each.name for each in _parse(self.module) if isinstance(each, ast.ClassDef)}
                if "References\n" not in text and near.issuperset(bases[:1]) and bases:
                    text += "".join(Place(self.module, bases[0]).docstring().partition("\n\nReferences\n")[1:])
                return text
        return inspect.getdoc(self.load()) or ""


class LazyTable(Mapping[str, T], Generic[T]):
    """Names and what they stand for, imported when it is taken.

    Parameters
    ----------
    places
        By name: where it is defined, as ``module:attribute`` or a `Place`.
    """

    def __init__(self, places: Mapping[str, str | Place]) -> None:
        self.places = {
            name: Place(*place.split(":")) if isinstance(place, str) else place for name, place in places.items()
        }

    @classmethod
    def from_source(cls, package: str, table: str) -> "LazyTable[Any]":
        """Return a dict of imported functions that a package writes out, without importing the package."""
        modules: dict[str, str] = {}
        places: dict[str, str] = {}
        for node in _parse(f"{package}.__init__"):
            if isinstance(node, ast.ImportFrom):
                modules |= {alias.name: str(node.module) for alias in node.names}
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table:
                written = node.value
                assert isinstance(written, ast.Dict)
                for key, value in zip(written.keys, written.values, strict=True):
                    entry = ast.unparse(value)
                    places[ast.literal_eval(key or "")] = f"{modules[entry]}:{entry}"
        return LazyTable(places)

    def __getitem__(self, name: str) -> T:
        found: T = self.places[name].load()
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __or__(self, other: "LazyTable[Any]") -> "LazyTable[Any]":
        return LazyTable(self.places | other.places)

    def attribute(self, name: str) -> T:
        """Return the entry that is defined under a name, for a module's ``__getattr__``.

        Raises
        ------
        AttributeError
            If there is none.
        """
        for place in self.places.values():
            if place.name == name:
                found: T = place.load()
                return found
        raise AttributeError(f"no entry is defined as {name!r}")


class _Door(ModuleType):
    """A package whose names are imported when they are first used."""

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds each submodule to its package: a function of the same name stays in view.
        if not (isinstance(value, ModuleType) and name in self.__all__):
            super().__setattr__(name, value)


def attach(package: str, file: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return ``__getattr__`` and ``__all__`` of a package, by what its ``__init__.pyi`` imports for type checkers."""
    sys.modules[package].__class__ = _Door
    places: dict[str, Place] = {}
    everything: list[str] = []
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            inside = ".".join(filter(None, (package if node.level else "", node.module)))
            rooms = node.module is None
            places |= {
                alias.name: Place(f"{inside}.{alias.name}") if rooms else Place(inside, alias.name)
                for alias in node.names
            }
        elif isinstance(node, ast.Assign):
            everything = ast.literal_eval(node.value)

    def load(name: str) -> Any:
        if name not in everything or name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = vars(sys.modules[package])[name] = places[name].load()
        return found

    return load, everything


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from searching for unreachable objects: while torch is imported that takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def _parse(module: str) -> list[ast.stmt]:
    """Return the statements of a module, without importing it or its packages; none if it has no source."""
    first, *rest = module.split(".")
    spec = find_spec(first)  # finds a package at the top without importing it
    for name in rest:
        folders = (spec and spec.submodule_search_locations) or []
        spec = PathFinder.find_spec(name, list(folders))
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body if spec and spec.origin else []
