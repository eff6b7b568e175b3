"""Which files the code of a custom module is in: its own, and those of the user's modules that it imports."""

import ast
import os
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name, spec_from_file_location
from pathlib import Path

from fedsim.data.fingerprint import digest_of
from fedsim.errors import is_the_users
from fedsim.packages import OURS

RUNNING = "__main__"
IMPORTERS = {"import_module", "__import__"}
# Code that is not imported by name: a text with such an ending that names a file is taken for one that is run.
CODE = (".py", ".so", ".c", ".cpp", ".cu")


@dataclass(frozen=True)
class Mentions:
    """What a source file mentions.

    Parameters
    ----------
    modules
        Absolute names of modules that it may import, anywhere in it.
    packages
        Packages of which it may import any module, as it puts the name together when it runs.
    texts
        All its texts, one of which may be the name of a file.
    """

    modules: tuple[str, ...]
    packages: tuple[str, ...]
    texts: tuple[str, ...]


def source_files(module: str) -> dict[str, Path]:
    """Return the files of a module's code by the names of the modules: none if it is not the user's.

    They are found in the text of the sources, so that nothing is imported and the order of imports does not matter:
    the module, the packages that it is in, and the user's modules that these import, at once or later, and so on.
    """
    found: dict[str, Path] = {}
    specs: dict[str, ModuleSpec | None] = {}
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])
        spec = _find(name, specs)
        if spec is None or not spec.has_location or not spec.origin:
            continue
        found[name] = file = Path(spec.origin)
        mentions = _mentions_of(file, name, is_package=spec.submodule_search_locations is not None)
        waiting += mentions.modules
        for package in mentions.packages:
            waiting += _modules_in(package, file, specs)
        others = {text: path for text, path in _named_in(mentions.texts, file) if path.suffix in CODE}
        found |= {text: path for text, path in others.items() if path not in found.values()}
    return found


def other_files(module: str) -> list[Path]:
    """Return the files that a module's sources name in their text, and that are no sources."""
    places: dict[Path, None] = {}
    for name, file in source_files(module).items():
        texts = _mentions_of(file, name, is_package=False).texts
        places |= dict.fromkeys(path for _, path in _named_in(texts, file) if path.suffix not in CODE)
    return list(places)


def find_module(name: str, package: ModuleSpec | None) -> ModuleSpec | None:
    """Find a module as an import would, without importing it or the packages that it is in.

    Parameters
    ----------
    package
        The package that it is in, as it was found; None for one at the top.
    """
    if package is None:
        finders = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next((found for found in finders if found), None)
    folders = list(package.submodule_search_locations or ())
    # By its last part: for a folder without __init__.py, Python asks for the imported package that it is in.
    return PathFinder.find_spec(name.rpartition(".")[2], folders) if folders else None


def _find(name: str, specs: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Find a module of the user's."""
    if name not in specs:
        package = name.rpartition(".")[0]
        above = _find(package, specs) if package else None
        if name == RUNNING:  # as it runs, and not a file of that name
            file = getattr(sys.modules.get(name), "__file__", None)
            has_file = file is not None and os.path.isfile(file) and is_the_users(file)  # noqa: PTH113 (any text)
            specs[name] = spec_from_file_location(name, file) if has_file else None
            return specs[name]
        is_known = name and name.partition(".")[0] not in (*OURS, "fedsim") and bool(above) == bool(package)
        spec = find_module(name, above) if is_known else None
        # A folder without __init__.py has no file.
        is_wanted = spec and (not spec.has_location or (spec.origin and is_the_users(spec.origin)))
        specs[name] = spec if is_wanted else None
    return specs[name]


def _modules_in(package: str, file: Path, specs: dict[str, ModuleSpec | None]) -> Iterator[str]:
    """Yield the names of all modules in a package, or next to a file that is in none."""
    if package:
        spec = _find(package, specs)
        folders = list(spec.submodule_search_locations or ()) if spec else []
    else:
        folders = [str(file.absolute().parent)]
    for each in pkgutil.iter_modules(folders):
        name = f"{package}.{each.name}" if package else each.name
        yield name
        if each.ispkg:
            yield from _modules_in(name, file, specs)


def _named_in(texts: tuple[str, ...], source: Path) -> Iterator[tuple[str, Path]]:
    """Yield the texts in a source that name a file next to it or in the working folder, and the file."""
    here, there = source.absolute().parent, Path.cwd()
    for text in texts:
        if "." in text and len(text) < 256:
            if os.path.isfile(here / text):  # noqa: PTH113 (it may be any text)
                yield text, here / text
            if here != there and os.path.isfile(there / text):  # noqa: PTH113
                yield f"./{text}", there / text


def _mentions_of(file: Path, module: str, *, is_package: bool) -> Mentions:
    if file.suffix != ".py":
        return Mentions((), (), ())
    return _read(file, digest_of(file), module if is_package else module.rpartition(".")[0])


@lru_cache(maxsize=1000)
def _read(file: Path, digest: str, package: str) -> Mentions:
    """Read a source file; one with a syntax error mentions nothing, as it cannot be imported either."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError):
        return Mentions((), (), ())
    modules: list[str] = []
    packages: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            modules += [base, *(f"{base}.{alias.name}" for alias in node.names if base and alias.name != "*")]
            packages += [base for alias in node.names if base and alias.name == "*"]
        elif isinstance(node, ast.Call) and _called(node) in IMPORTERS and node.args:
            text, is_whole = _beginning(node.args[0])
            if is_whole:
                modules.append(_absolute(text, package))
            else:
                packages.append(_absolute(text.rpartition(".")[0], package) if "." in text else package)
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return Mentions(*(tuple(dict.fromkeys(each)) for each in (modules, packages, texts)))


def _absolute(name: str, package: str) -> str:
    """Return an absolute name; none if it is relative and leads out of all packages."""
    try:
        return resolve_name(name, package or None)
    except (ImportError, ValueError):
        return ""


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _beginning(node: ast.expr) -> tuple[str, bool]:
    """Return how a text begins that is put together when the code runs, and whether that is all of it."""
    match node:
        case ast.Constant(value=str(text)):
            return text, True
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) | ast.BinOp(left=ast.Constant(value=str(text))):
            return text.partition("%")[0], False
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)))):
            return text.partition("{")[0], False
        case _:
            return "", False
