"""Entries of a table and names at a door are imported when they are used, and not before."""

import importlib
import inspect
import subprocess
import sys

import pytest

from fedsim.config.choices import CATALOGUES
from fedsim.lazy import LazyTable
from partitions import PARTITIONS

LAZY = [
    (kind, name) for kind, each in CATALOGUES.items() if isinstance(each.entries, LazyTable) for name in each.entries
]
DOORS = (
    "fedsim.alignment",
    "fedsim.analysis",
    "fedsim.data",
    "fedsim.results.report",
    "fedsim.strategy",
    "fedsim.training",
)


@pytest.mark.parametrize(("kind", "name"), LAZY)
def test_the_docstring_read_from_the_source_is_that_of_the_entry(kind: str, name: str) -> None:
    entries = CATALOGUES[kind].entries
    own, *inherited = entries.places[name].docstring().rpartition("\n\nReferences\n")
    assert inspect.getdoc(entries[name]) in (own, "".join((own, *inherited)))


@pytest.mark.parametrize("door", DOORS)
def test_a_door_shows_what_its_stub_says(door: str) -> None:
    package = importlib.import_module(door)
    assert package.__all__
    for name in package.__all__:
        assert not inspect.ismodule(getattr(package, name)), name
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_a_function_at_a_door_stays_when_its_file_is_imported() -> None:
    for name in ("fedsim.analysis.cka", "fedsim.alignment.repair"):
        importlib.import_module(name)
        package, _, function = name.rpartition(".")
        assert inspect.isfunction(getattr(importlib.import_module(package), function))


def test_a_table_and_a_door_import_nothing_before_they_are_used() -> None:
    code = (
        f"import sys, fedsim.config.choices, {', '.join(DOORS)}; print('torch' in sys.modules, 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_partitions_are_those_of_their_package() -> None:
    own = {name: entry for name, entry in CATALOGUES["partitions"].entries.items() if ":" not in name}
    assert own == PARTITIONS
    assert list(own) == list(PARTITIONS)


def test_a_strategy_is_imported_by_the_name_of_its_class() -> None:
    from strategies import FedProx

    assert FedProx.__module__ == "strategies.fedprox"
    with pytest.raises(ImportError, match="FedNothing"):
        from strategies import FedNothing  # noqa: F401
