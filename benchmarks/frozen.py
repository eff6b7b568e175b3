"""Memory of a model that is mostly frozen: how many copies of its frozen part a run holds.

Run with ``python benchmarks/frozen.py``; see ``--help``. 20 clients train 0.2 M parameters of a model that has 22.7 M
frozen ones besides, in four ways: alone, on two threads, as a cohort, and in two Ray workers. Each way also runs with a
model that has no frozen part and is otherwise the same. The difference in memory, during the rounds, is what the frozen
part costs: as a multiple of its size it should be 1, and 2 with Ray, whose workers share the copy of the object store
and whose driver has its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from torch import nn

from benchmarks.child import MARK
from benchmarks.machine import describe
from benchmarks.processes import marked, pss_bytes
from benchmarks.results import save, show

ROOT = Path(__file__).parent.parent
FROZEN_WIDTH, WIDTH, CLIENTS = 4700, 42, 20
EXPERIMENT = f"""
rounds = {{rounds}}
clients = {CLIENTS}

[data]
name = "digits"
train_examples = 400
test_examples = 50

[partition]
scheme = "dirichlet"
alpha = 1.0
min_size = 5

[model]
name = "benchmarks.frozen:{{model}}"

[strategy]
name = "fedper"

[barriers]
every = 0
"""
LIMITS = {"alone": 1.3, "two threads": 1.3, "cohort of 20": 1.3, "two Ray workers": 2.3}
ENGINES = {
    "alone": {"engine.workers": "1"},
    "two threads": {"engine.workers": "2"},
    "cohort of 20": {"engine.workers": "1", "engine.cohort": "20"},
    "two Ray workers": {"engine.name": '"ray"', "engine.workers": "2"},
}
COLUMNS = ("engine", "frozen_mb", "with_mb", "without_mb", "copies", "limit")


def with_base(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a model with 22.7 M frozen and 0.2 M trainable parameters."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, FROZEN_WIDTH), nn.ReLU(), nn.Linear(FROZEN_WIDTH, FROZEN_WIDTH))
    return nn.Sequential(*base.requires_grad_(False), nn.Linear(FROZEN_WIDTH, WIDTH), nn.Linear(WIDTH, classes))


def without_base(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a model with about the same trainable parameters and no frozen ones."""
    repeated = nn.Upsample(FROZEN_WIDTH)
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, (1, -1)),
        repeated,
        nn.Flatten(),
        nn.Linear(FROZEN_WIDTH, WIDTH),
        nn.Linear(WIDTH, classes),
    )


def memory_of(model: str, settings: dict[str, str], rounds: int, experiment: str = EXPERIMENT) -> float:
    """Return the bytes that a run holds, with all its processes: the median over the second half of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.toml"
        path.write_text(experiment.format(rounds=rounds, model=model))
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "fedsim", "run", str(path), "--out", folder]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        environment = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT)}
        samples: list[tuple[int, float]] = []
        with subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as run:
            while run.poll() is None:
                if list(Path(folder).rglob("timing.jsonl")):  # a round is done
                    processes = marked(f"{MARK}={mark}")
                    samples.append((len(processes), pss_bytes(processes)))
                time.sleep(0.05)
            if run.returncode:
                raise RuntimeError(f"{command} failed: {run.stderr and run.stderr.read().decode()}")
    all_there = [held for processes, held in samples if processes == max(samples)[0]]
    return statistics.median(all_there[len(all_there) // 2 :])


def main() -> None:
    """Measure all engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="length of the runs (default: 20)")
    rounds = parser.parse_args().rounds
    frozen = sum(value.nbytes for value in with_base((1, 8, 8), 10).parameters() if not value.requires_grad)
    rows: list[dict[str, Any]] = []
    for engine, settings in ENGINES.items():
        have, have_not = (memory_of(model, settings, rounds) for model in ("with_base", "without_base"))
        row = {"engine": engine, "frozen_mb": frozen / 1e6, "with_mb": have / 1e6, "without_mb": have_not / 1e6}
        rows.append(row | {"copies": (have - have_not) / frozen, "limit": LIMITS[engine]})
    show(f"Memory of {CLIENTS} clients; copies: what the frozen part adds, as a multiple of its size", rows, COLUMNS)
    save("frozen", describe("cpu"), LIMITS, rows)


if __name__ == "__main__":
    main()
