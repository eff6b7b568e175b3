"""What is declared is used, and what is used is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES, DEVELOPMENT = ("fedsim", "strategies", "partitions"), ("tests", "benchmarks", "experiments")
FOR_USERS = (
    "adapters",
    "datasets",
    "flwr-datasets",
    "mlflow",
    "tensorboard",
    "transformers",
    "wandb",
)  # extras that add to what a run can do
NOT_HERE = frozenset({"trackio"})  # an extra too, which takes no Pillow as new as ours
# What is not imported, and where it is used.
USED_BY = {
    "scikit-learn": ("fedsim/data/digits.py", 'distribution("scikit-learn")'),  # its file of digits
    "flwr-datasets": ("fedsim/data/flower_partitioners.py", '"flwr_datasets.partitioner"'),
    "pyarrow": ("fedsim/results/files.py", "to_parquet"),  # by pandas
    "peft": ("fedsim/models/adapters.py", 'Place("peft"'),
    "transformers": ("fedsim/models/architectures/huggingface.py", 'Place("transformers"'),
    "tensorboard": ("fedsim/experiment/tracking/tensorboard.py", "torch.utils.tensorboard"),
    "sqlalchemy": ("fedsim/experiment/tracking/mlflow.py", 'SQLITE = "sqlite:'),
    "alembic": ("fedsim/experiment/tracking/mlflow.py", 'SQLITE = "sqlite:'),
    "ruff": ("Makefile", "/ruff check"),
    "mypy": ("Makefile", "/mypy"),
    "pandas-stubs": ("Makefile", "/mypy"),
    "pytest-xdist": ("Makefile", "--numprocesses"),
}
ELSEWHERE = "benchmarks/peers", "benchmarks/.venvs"  # other simulators, each in a separate environment
OURS = {*PACKAGES, *DEVELOPMENT, "flower_app"}


def declared(*extras: str) -> set[str]:
    """Return the distributions that pyproject.toml names: what runs need, or what extras add."""
    lists = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    return {_normal(re.match(r"[\w.-]+", text)[0]) for each in lists for text in each}  # type: ignore[index]


@cache
def imported(*folders: str) -> frozenset[str]:
    """Return the top-level names that the code of folders imports, without the standard library's and our own."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {name for path in paths if not str(path.relative_to(ROOT)).startswith(ELSEWHERE) for name in _names(path)}
    return frozenset(names - sys.stdlib_module_names - OURS - NOT_HERE)


def distributions(names: frozenset[str]) -> dict[str, set[str]]:
    """Return for each name the installed distributions that provide it."""
    installed = packages_distributions()
    return {name: {_normal(each) for each in installed.get(name, ())} for name in names}


def _names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                yield from (alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield module.partition(".")[0]
            case ast.Call(func=ast.Attribute(attr="importorskip"), args=[ast.Constant(value=str(module)), *_]):
                yield module.partition(".")[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _unused(wanted: set[str], used: frozenset[str]) -> set[str]:
    provided = {each for found in distributions(used).values() for each in found}
    words = {name: (ROOT / file).read_text() for name, (file, _) in USED_BY.items()}
    return {each for each in wanted - provided if each not in USED_BY or USED_BY[each][1] not in words[each]}


def _undeclared(known: set[str], used: frozenset[str]) -> dict[str, set[str]]:
    return {name: found for name, found in distributions(used).items() if found.isdisjoint(known)}


def test_every_dependency_is_used_by_what_is_installed() -> None:
    assert not _unused(declared(), imported(*PACKAGES))


def test_everything_that_is_imported_is_a_dependency() -> None:
    assert not _undeclared(declared() | declared(*FOR_USERS), imported(*PACKAGES))


def test_every_dependency_of_an_extra_is_used() -> None:
    assert not _unused(declared("dev", "peers"), imported(*DEVELOPMENT))
    assert not _unused(declared(*FOR_USERS), imported(*PACKAGES))


def test_everything_that_tests_and_benchmarks_import_is_declared() -> None:
    assert not _undeclared(declared() | declared("dev", "peers", *FOR_USERS), imported(*DEVELOPMENT))


def test_the_versions_that_are_installed_by_make_are_those_of_all_that_is_declared() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    fixed = {_normal(line.partition("==")[0]) for line in lines}
    assert declared() | declared("dev", "peers", *FOR_USERS) <= fixed
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
