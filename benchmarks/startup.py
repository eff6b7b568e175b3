"""Start-up: processor seconds of an import, help, a mistake, a list of names and a short run.

Run with ``python benchmarks/startup.py``; see ``--help``. Each command runs several times, each in its own process; the
shortest time is shown, together with that of ``import torch``, which every run needs.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe
from benchmarks.results import save, show

ROOT = Path(__file__).parent.parent
EXPERIMENT = """
rounds = 3
clients = 10

[partition]
scheme = "dirichlet"
alpha = 0.5
"""
FEDSIM = ("-m", "fedsim")
WRONG = ("run", "study.toml", "--set", "local.learning_rate=1")
# What is run, and how many processor seconds it may take.
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "import torch": (("-c", "import torch"), None),
    "import fedsim": (("-c", "import fedsim"), 0.1),
    "fedsim --help": ((*FEDSIM, "--help"), 0.5),
    "fedsim --version": ((*FEDSIM, "--version"), 0.5),
    "fedsim list strategies": ((*FEDSIM, "list", "strategies"), 0.5),
    "a wrong setting": ((*FEDSIM, *WRONG), 0.5),
    "a run of 3 rounds": ((*FEDSIM, "run", "study.toml"), 4.0),
}
COLUMNS = ("command", "cpu_seconds", "median_cpu_seconds", "limit", "of_limit")


def cpu_seconds_of(arguments: tuple[str, ...]) -> float:
    """Return the processor seconds that Python and its children spend on a command in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "study.toml").write_text(EXPERIMENT)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{arguments} failed: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all commands, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="how often each command is run (default: 5)")
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name, (arguments, _) in COMMANDS.items():
            taken = cpu_seconds_of(arguments)
            if repeat:  # the first fills the caches of files and compiled modules
                seconds[name].append(taken)
    rows: list[dict[str, Any]] = []
    for name, (_, limit) in COMMANDS.items():
        least = min(seconds[name])
        row = {"command": name, "cpu_seconds": least, "median_cpu_seconds": statistics.median(seconds[name])}
        rows.append(row | ({} if limit is None else {"limit": limit, "of_limit": least / limit}))
    show("Processor seconds, and the share of the limit", rows, COLUMNS)
    save("startup", describe("cpu"), {name: limit for name, (_, limit) in COMMANDS.items() if limit}, rows)


if __name__ == "__main__":
    main()
