"""Arrows between modules point down only, and each library is imported where it belongs."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top to the bottom; a module may import what is below it, or beside it in its own package.
ORDER = [
    ["cli"],
    ["terminal", "tune"],
    ["sweep"],
    ["check", "checkpoint_barriers", "dry_run", "jobs", "pfllib", "processes", "progress", "tuning_grid"],
    ["measured_rows"],
    ["report"],
    ["experiment"],
    ["rounds"],
    ["evaluation_work", "measurement_work"],
    ["gate"],
    ["measurements"],
    ["checkpoints"],
    ["engines"],
    ["client"],
    ["client_evaluation"],
    ["client_state", "fine_tuning"],
    ["federation"],
    ["federated_data"],
    ["architecture", "heterogeneity", "naming", "split"],
    ["catalog"],
    ["strategies", "flower_rule"],
    ["strategy"],
    ["traffic", "updates"],
    ["messages"],
    ["checkpoint_measures", "matched_models"],
    ["alignment"],
    ["analysis"],
    ["early_stopping", "environment", "records"],
    ["config"],
    ["evaluation", "expectation"],
    ["data", "features", "models"],
    ["training"],
    ["averaging", "checkpoint_files", "graph", "layers", "participants"],
    ["params", "seeds", "errors"],
    ["partitions"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
SOURCES = [
    path for package in ("fedsim", "strategies", "partitions") for path in sorted((ROOT / package).rglob("*.py"))
]


def part_of(module: str) -> str:
    names = module.split(".")
    return names[1] if names[0] == "fedsim" and len(names) > 1 else names[0]


def imports(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "fedsim":
            found |= {f"fedsim.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def own_part(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return names[1] if names[0] == "fedsim" and len(names) > 1 else names[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down_only(path: Path) -> None:
    own = own_part(path)
    if own in ("__init__", "__main__"):
        return
    for module in imports(path):
        other = part_of(module)
        if other in RANK and other != own:
            assert RANK[other] > RANK[own], f"{path} imports {module}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_is_imported_where_it_belongs(path: Path) -> None:
    own, libraries = own_part(path), {module.split(".")[0] for module in imports(path)}
    if path != ROOT / "fedsim/engines/ray.py":
        assert "ray" not in libraries
    if own in (
        "training",
        "evaluation",
        "alignment",
        "analysis",
        "data",
        "features",
        "models",
        "averaging",
        "layers",
        "params",
        "seeds",
        "config",
        "records",
        "report",
    ):
        assert "flwr" not in libraries
    if own == "report":
        assert not {part_of(module) for module in imports(path)} & {"federation", "client", "engines", "rounds"}
    if own == "partitions":
        assert libraries <= {"numpy", "partitions"} | sys.stdlib_module_names
    if own == "strategies":
        modules = {".".join(module.split(".")[:2]) for module in imports(path) if module.startswith("fedsim")}
        below = ("strategy", "alignment", "averaging", "layers", "params", "seeds", "errors")
        assert modules <= {f"fedsim.{name}" for name in below}
    if own not in ("catalog", "strategies", "partitions"):
        assert not libraries & {"strategies", "partitions"}


def test_every_source_file_is_in_a_package_that_is_installed() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    for package in {path.parent.relative_to(ROOT) for path in SOURCES}:
        assert f'"{".".join(package.parts)}"' in pyproject
