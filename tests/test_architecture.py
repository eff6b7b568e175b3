"""The laws of the house: rooms import what is below them, files import no circle, doors say what is inside."""

import ast
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
# From the top; a room imports only rooms below it.
ROOMS = (
    "cli",
    "experiment",
    "federation",
    "results",
    "config",
    "strategies",
    "strategy",
    "analysis",
    "alignment",
    "data",
    "training",
    "models",
    "partitions",
    "options",
    "packages",
    "lazy",
    "seeds",
    "reading",
    "memory",
    "errors",
    "console",
    "shortening",
)
TORCH_ONLY = (
    *("analysis", "alignment", "data", "training", "models"),
    *("options", "packages", "lazy", "seeds", "reading", "memory", "errors", "console", "shortening"),
)
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("fedsim", "strategies", "partitions")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def room_of(module: str) -> str:
    """Return the room of a module; the public face has none."""
    names = module.split(".")
    return names[0] if names[0] != "fedsim" else (names[1] if len(names) > 1 else "")


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def imports(module: str) -> set[str]:
    """Return all modules that a module imports, wherever in it: the file where there is one, else the package."""
    stub = FILES[module].with_suffix(".pyi")  # of a lazy door: what it imports when it is asked
    trees = [parsed(path) for path in (FILES[module], stub) if path.exists()]
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            source = f"{module}.{node.module}" if node.level else node.module
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else source for name in names}
    return found


def all_imports() -> dict[str, set[str]]:
    """Return what each module imports."""
    return {module: imports(module) for module in FILES}


def arrows() -> Iterator[tuple[str, str]]:
    """Yield each import between two files of the house."""
    for module, others in all_imports().items():
        if room_of(module) not in ("", "__main__"):
            yield from ((module, other) for other in others if other in FILES)


def test_the_list_of_rooms_is_the_folder() -> None:
    inside = {path.stem for path in (ROOT / "fedsim").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert inside - {"__init__", "__main__", "__pycache__"} == set(ROOMS) - {"strategies", "partitions"}


def test_a_room_imports_only_rooms_below_it() -> None:
    rank = {room: floor for floor, room in enumerate(ROOMS)}
    up = [
        f"{module} imports {other}"
        for module, other in arrows()
        if room_of(other) and room_of(module) != room_of(other) and rank[room_of(module)] > rank[room_of(other)]
    ]
    assert not up


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, other in arrows():
        graph.setdefault(module, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def test_each_library_is_imported_where_it_belongs() -> None:
    for module, others in all_imports().items():
        libraries = {other.split(".")[0] for other in others}
        room = room_of(module)
        if not module.startswith("fedsim.federation.engines."):
            assert "ray" not in libraries, module
        if room in (*TORCH_ONLY, "config", "results"):
            assert "flwr" not in libraries, module
        if room == "partitions":
            assert libraries <= {"numpy", "partitions"} | sys.stdlib_module_names, module
        if room == "strategies":
            used = {room_of(other) for other in others if other.startswith("fedsim")}
            assert used <= {"strategy", "alignment", "training", "models", "lazy", "seeds", "errors"}, module


def test_only_figures_that_are_drawn_import_matplotlib() -> None:
    """A page shows charts; its figures as files are drawn when they are asked for."""
    report = "fedsim.results.report.drawing"
    users = {module for module, others in all_imports().items() if any(o.startswith("matplotlib") for o in others)}
    drawn = {module for module in users if not module.startswith((f"{report}.plotting", f"{report}.paper."))}
    assert drawn == {"fedsim.results.report.pages.section"}  # for type checkers


def test_what_is_printed_goes_through_the_terminal() -> None:
    found = {
        module
        for module, path in FILES.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console")
    }
    assert found == {"fedsim.cli.terminal"}


def test_nothing_private_is_imported_from_another_file() -> None:
    private = [
        f"{module} imports {name}"
        for module, path in FILES.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.split(".")[0] in {m.split(".")[0] for m in FILES}
        for name in (f"{node.module}.{alias.name}" for alias in node.names)
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    ]
    assert not private


def test_each_door_says_what_is_inside() -> None:
    for module, path in FILES.items():
        if path.name == "__init__.py":
            text = ast.get_docstring(parsed(path)) or ""
            assert len(text.split()) >= 5, f"{module}: {text!r} does not say what is inside"


def test_files_hold_one_idea() -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: n for module, n in lines.items() if n > 350} == {}
    methods = {module: n for module, n in lines.items() if module.startswith("strategies.")}
    assert {module: n for module, n in methods.items() if n > 180} == {}
    assert statistics.median(methods.values()) <= 70
