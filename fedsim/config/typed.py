"""What code is that has no file, such as a cell of a notebook: its content, for the name of a run."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

# Of a class, nothing that its methods compute with.
OF_PYTHON = {"__doc__", "__dict__", "__weakref__", "__module__", "__firstlineno__", "__static_attributes__"}


def digest_of_code(entry: Any, module: str) -> str:
    """Return eight hexadecimal digits that change with the code of a function or class.

    Its bytecode counts, with constants, defaults and what it names in its module: other functions and classes, and
    plain values. Comments, blank lines and what the cells around it do don't.
    """
    digest = hashlib.sha256()
    for part in _parts(entry, module, set()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:8]


def _parts(entry: Any, module: str, seen: set[int]) -> Iterator[str]:
    match entry:
        case partial():
            yield from _of_all((entry.func, *entry.args, entry.keywords), module, seen)
        case staticmethod() | classmethod():
            yield from _parts(entry.__func__, module, seen)
        case property():
            yield from _of_all((entry.fget, entry.fset), module, seen)
        case type() | FunctionType() if id(entry) in seen:
            return
        case type() if entry.__module__ == module:
            seen.add(id(entry))
            members = {name: value for name, value in vars(entry).items() if name not in OF_PYTHON}
            yield from _of_all((entry.__qualname__, *entry.__bases__, members), module, seen)
        case FunctionType() if entry.__module__ == module:
            seen.add(id(entry))
            yield from _of_code(entry.__code__)
            named = [name for name in dict.fromkeys(_names(entry.__code__)) if name in entry.__globals__]
            held = [cell.cell_contents for cell in entry.__closure__ or ()]
            values = (entry.__defaults__, entry.__kwdefaults__, vars(entry), held)
            yield from _of_all((*values, *(entry.__globals__[name] for name in named)), module, seen)
        case tuple() | list():
            yield str(len(entry))
            yield from _of_all(entry, module, seen)
        case dict():
            yield from _of_all([*map(repr, entry), *entry.values()], module, seen)
        case str() | bytes() | int() | float() | complex() | None:
            yield repr(entry)
        case _:
            yield getattr(entry, "__qualname__", type(entry).__qualname__)


def _of_all(values: Iterable[Any], module: str, seen: set[int]) -> Iterator[str]:
    for value in values:
        yield from _parts(value, module, seen)


def _of_code(code: CodeType) -> Iterator[str]:
    yield repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
        else:
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
