"""A run of a million clients with personal heads: its time and memory, and what resuming it takes.

Run with ``python benchmarks/million.py``, for about ten minutes: 1,000 rounds of 100 clients, killed after 550 rounds
and resumed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.child import ROOT
from benchmarks.machine import describe
from benchmarks.processes import cpu_seconds, ended_cpu_seconds, pss_bytes
from benchmarks.results import save, show

CLIENTS, ROUNDS, KILLED_AFTER, TAKING_PART = 1_000_000, 1_000, 550, 100
EVERY = 100  # rounds from one evaluation, checkpoint and figure to the next
DRY_RUN_SECONDS = 5.0
# Of the personal heads, some 8,000 stay in memory.
FILE = f"""
rounds = {ROUNDS}
clients = {CLIENTS}
participation = {TAKING_PART / CLIENTS}
evaluate_clients = {TAKING_PART}
evaluate_every = {EVERY}
checkpoint_every = {EVERY}
device = "cpu"

[data]
name = "toy"
examples = {10 * CLIENTS}
shape = [1, 2, 2]

[partition]
scheme = "iid"

[model]
name = "mlp"
hidden = [8]

[strategy]
name = "layer_set"
shared = "body"

[engine]
cache_bytes = 20_000_000

[barriers]
every = 0
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
COLUMNS = ("part", "rounds", "seconds", "cpu_seconds", "memory_mb", "limit")


def command(folder: Path, *more: str) -> list[str]:
    """Return the command that runs or resumes the file in ``folder``."""
    return [sys.executable, "-m", "fedsim", "run", str(folder / "million.toml"), "--out", str(folder), "-q", *more]


def recorded(folder: Path) -> int:
    """Return how many rounds are recorded."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("million/*/timing.jsonl"))


def watched(folder: Path, part: str, kill_after: int) -> list[dict[str, Any]]:
    """Run the command, killed once ``kill_after`` rounds are recorded.

    Return a row for its first round, for each hundred rounds, and for its end.
    """
    start, started = time.perf_counter(), ended_cpu_seconds()
    process = subprocess.Popen(command(folder), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = []
    last = recorded(folder)
    while process.poll() is None:
        done = recorded(folder)
        if done > last and (not rows or done // EVERY > last // EVERY):
            row = {"part": part, "rounds": done, "seconds": time.perf_counter() - start}
            used, memory = cpu_seconds([process.pid]), pss_bytes([process.pid])
            rows.append(row | {"cpu_seconds": used, "memory_mb": memory / 1e6})
        last = done
        if done >= kill_after:
            process.kill()
        time.sleep(0.2)
    if process.returncode and last < kill_after:
        raise RuntimeError(f"it ended with code {process.returncode}")
    end = {"part": f"{part}, end", "rounds": last, "seconds": time.perf_counter() - start}
    return [*rows, end | {"cpu_seconds": ended_cpu_seconds() - started}]


def dry_run(folder: Path) -> dict[str, Any]:
    """Time what the command says about a run before it begins."""
    start, started = time.perf_counter(), ended_cpu_seconds()
    subprocess.run(command(folder, "--dry-run"), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = ended_cpu_seconds() - started
    return {"part": "dry run", "seconds": seconds, "cpu_seconds": used, "limit": DRY_RUN_SECONDS}


def main() -> None:
    """Plan the run, kill it, and resume it to its end."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "million.toml").write_text(FILE)
        rows = [dry_run(folder), *watched(folder, "run", KILLED_AFTER), *watched(folder, "resumed", ROUNDS + 1)]
        [partition] = folder.glob("million/*/partition.parquet")
        files = {"partition_mb": partition.stat().st_size / 1e6}
        files["run_mb"] = sum(path.stat().st_size for path in partition.parent.rglob("*") if path.is_file()) / 1e6
    show("A million clients with personal heads: one run, killed and resumed", rows, COLUMNS)
    save("million", describe(), {"dry_run_seconds": DRY_RUN_SECONDS}, rows, files=files)


if __name__ == "__main__":
    main()
