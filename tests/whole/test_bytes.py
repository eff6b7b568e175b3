"""A few small runs have the numbers and the sizes that they had before.

The numbers are in ``bytes.json``. A change that means to change them writes them again, in the root of the project::

    python -m tests.whole.test_bytes > tests/whole/bytes.json

Losses are rounded, as processors differ in the last digits; bytes are exact.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim.config import Config, choices, with_settings
from fedsim.experiment import run as experiment
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from tests.conftest import TINY

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {},
    "layer_set": {"shared": "body"},
    "scaffold": {},
    "fedadam": {},
    "barrier_gated": {"probe": False, "confidence": 0.5},
}
SETTINGS = {"participation": 0.75, "unseen": 0.2, "clients": 5, "local": {"lr": 0.1, "batch_size": 16}}
GOLDEN = Path(__file__).with_name("bytes.json")


def measured(folder: RunFolder) -> dict[str, Any]:
    """Return what a run found and what it left on disk, in a few numbers."""
    metrics = read_rows(folder.metrics)
    losses = metrics[metrics["metric"] == "loss"].groupby(["round", "model", "split"])["value"].mean()
    traffic = read_rows(folder.communication).groupby(["set", "layer"])[["down", "up"]].sum()
    gates = [pd.read_parquet(path) for path in folder.measured_files("gate").values()]
    barriers = pd.read_parquet(folder.measured("barriers", 2)).groupby("group")["loss_own_base"].mean()
    return {
        "losses": {"/".join(map(str, name)): round(value, 6) for name, value in losses.items()},
        "barriers": {str(group): round(value, 6) for group, value in barriers.items()},
        "gate": [round(value, 6) for table in gates for value in table.groupby("layer")["barrier"].mean()],
        "bytes": {"/".join(name): [int(row["down"]), int(row["up"])] for name, row in traffic.iterrows()},
        "rows": {path.name: len(path.read_text().splitlines()) for path in (folder.metrics, folder.communication)},
        "checkpoint": {
            str(path.relative_to(folder.checkpoints)): path.stat().st_size
            for path in sorted(folder.checkpoints.rglob("*.safetensors"))
        },
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_has_the_numbers_and_the_bytes_of_before(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    found = measured(play(tiny(**SETTINGS, strategy={"name": name, **STRATEGIES[name]})))
    expected = json.loads(GOLDEN.read_text())[name]
    for part in ("losses", "barriers"):
        assert found.pop(part) == pytest.approx(expected.pop(part), abs=1e-4)
    assert found.pop("gate") == pytest.approx(expected.pop("gate"), abs=1e-4)
    assert found == expected


def write() -> None:
    """Print the numbers of all runs."""
    found = {}
    with tempfile.TemporaryDirectory() as path:
        for name, options in STRATEGIES.items():
            changes = {(key,): value for key, value in {**SETTINGS, "strategy": {"name": name, **options}}.items()}
            folder = RunFolder(Path(path) / name)
            experiment.run(
                choices.resolve(Config.parse(with_settings(TINY, changes), name)), folder, lambda summary: None
            )
            found[name] = measured(folder)
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    write()
