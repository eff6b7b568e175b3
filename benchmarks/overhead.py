"""The overhead of simulation beyond the clients' own work: seconds, processor time and memory of a round, and start-up.

Run with ``python benchmarks/overhead.py``; see ``--help``. Every engine runs in its own processes.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.child import Child, command_of, own_mark
from benchmarks.job import CLIENTS, Job, settings_of
from benchmarks.machine import describe
from benchmarks.processes import Others, PeakMemory, cpu_seconds, marked
from benchmarks.results import note_of, save, show

PARTS = ("messages", "training", "run", "scale")
ROUNDS, MEMORY_ROUNDS = 5, 2
# Registered clients, clients that take part, payload, engines.
ROUNDS_OF_NOTHING = (
    (10, 10, "tiny", ("local", "ray", "flower")),
    (100, 100, "tiny", ("local", "ray", "flower")),
    (1_000, 1_000, "tiny", ("local", "ray", "flower")),
    (10_000, 10_000, "tiny", ("local", "ray")),
    (100_000, 100, "tiny", ("local", "ray")),
    (10, 10, "large", ("local", "ray", "flower")),
)
COLUMNS = (
    "engine",
    "clients",
    "taking_part",
    "payload",
    "work",
    "seconds",
    "cpu_seconds",
    "start_up",
    "peak_mb",
    "note",
)
# Ten examples per client, whatever their number; the data set is the same.
TOY_RUN: dict[str, Any] = {
    "evaluate_every": 10**6,
    "checkpoint_every": 10**6,
    "device": "cpu",
    "barriers": {"every": 0},
    "partition": {"scheme": "iid", "validation": 0.0, "test": 0.2},
    "model": {"name": "mlp", "hidden": [32]},
    "strategy": {"name": "layer_set", "shared": "body"},
}
TOY_EXAMPLES = 1_000_000


class Lab:
    """Starts children and keeps their logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def child(self, module: str, argument: dict[str, Any] | None = None) -> Child:
        """Start a child that runs ``main`` of a module."""
        return Child([*command_of(module), *([json.dumps(argument)] if argument else [])], self._folder / "log")

    def rounds(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the figures of an engine's rounds."""
        with self.child("simulation", request) as child:
            ready, others = child.ready(), Others(own_mark())
            first = self._ask(child, request)
            timed = []
            for _ in range(ROUNDS):
                before = cpu_seconds(marked(child.mark))
                seconds = self._ask(child, request)
                timed.append((seconds, cpu_seconds(marked(child.mark)) - before))
                if sum(seconds for seconds, _ in timed) > 30:
                    break
            least = min(seconds for seconds, _ in timed)
            figures = {
                "seconds": least,
                "cpu_seconds": statistics.median(cpu for _, cpu in timed),
                "start_up": ready + first - least,
                "others_took": others.share(),
            }
            peak = PeakMemory()
            with peak.of(child.mark):
                for _ in range(MEMORY_ROUNDS):
                    self._ask(child, request)
        return figures | {"peak_mb": peak.bytes / 1e6}

    @staticmethod
    def _ask(child: Child, request: dict[str, Any]) -> float:
        answer = child.ask()
        if answer["clients"] != request["taking_part"]:
            raise RuntimeError(f"{answer['clients']} of {request['taking_part']} clients replied")
        return answer["seconds"]


def tried(row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row with the measurement, or with the reason why it failed."""
    try:
        row = row | measure()
    except (RuntimeError, OSError) as error:
        row = row | {"note": note_of(error)}
    print(".", end="", flush=True)
    return row


def messages(lab: Lab, quick: bool) -> list[dict[str, Any]]:
    """Measure rounds of clients that send back what they received."""
    rows = []
    for clients, taking_part, payload, engines in ROUNDS_OF_NOTHING[: 2 if quick else None]:
        for engine in engines:
            request = {"engine": engine, "clients": clients, "taking_part": taking_part, "payload": payload}
            request["work"] = "nothing"
            rows.append(tried(request, lambda: lab.rounds(request)))  # noqa: B023 (called at once)
    show("clients that send back what they received", rows, COLUMNS)
    return rows


def training(lab: Lab, quick: bool) -> list[dict[str, Any]]:
    """Measure rounds of the training job against a bare loop over the same clients, all with fedsim's training."""
    rows = []
    for payload in ("mlp",) if quick else ("mlp", "cnn"):
        now = []
        for engine in ("loop", "local", "ray", "flower"):
            request = {"engine": engine, "clients": CLIENTS, "taking_part": CLIENTS, "payload": payload}
            request["work"] = "training"
            now.append(tried(request, lambda: lab.rounds(request)))  # noqa: B023
        bare = now[0].get("cpu_seconds")
        for row in now:
            if bare and "cpu_seconds" in row:
                row["cpu_overhead"] = row["cpu_seconds"] / bare - 1
        rows += now
    show("training in each engine", rows, (*COLUMNS[:-1], "cpu_overhead", "note"))
    return rows


def whole_runs(lab: Lab, quick: bool) -> list[dict[str, Any]]:
    """Measure whole runs, each round against a bare loop of the same clients' training."""
    rows = []
    strategies: dict[str, dict[str, Any]] = {"full": {"name": "full"}, "body": {"name": "layer_set", "shared": "body"}}
    for engine in ("local",) if quick else ("local", "ray"):
        for name, strategy in strategies.items():
            settings = settings_of("cnn") | {"strategy": strategy, "engine": {"name": engine}}
            row = {"engine": engine, "clients": CLIENTS, "payload": "cnn", "strategy": name}
            rows.append(tried(row, lambda: _whole_run(lab, settings, 2 if quick else 5)))  # noqa: B023
    columns = ("seconds", "bare_seconds", "wall_overhead", "cpu_overhead", "train", "aggregate", "rest", "note")
    show("whole runs against the bare loop", rows, ("engine", "strategy", "clients", *columns))
    return rows


def _whole_run(lab: Lab, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    with lab.child("whole_run") as child:
        child.ready()
        answer = child.ask(settings=settings, rounds=rounds, bare=True)
    figures, parts = answer["figures"], answer["parts"]
    # The first round is a warm-up for both.
    wall, bare = figures["round"][1:], figures["bare"][1:]
    cpu, bare_cpu = figures["round_cpu"][1:], figures["bare_cpu"][1:]
    of_parts = {name: statistics.median(seconds[1:]) for name, seconds in parts.items()}
    return {
        "seconds": min(wall),
        "bare_seconds": min(bare),
        "wall_overhead": statistics.median(w / b for w, b in zip(wall, bare, strict=True)) - 1,
        "cpu_seconds": statistics.median(cpu),
        "bare_cpu_seconds": statistics.median(bare_cpu),
        "cpu_overhead": statistics.median(cpu) / statistics.median(bare_cpu) - 1,
        "rest": statistics.median(wall) - sum(of_parts.values()),
    } | of_parts


def scale(lab: Lab, quick: bool) -> list[dict[str, Any]]:
    """Measure runs with 100 participants among few and many clients, with personal heads."""
    rows = []
    examples = TOY_EXAMPLES // 10 if quick else TOY_EXAMPLES
    for clients in (1_000, examples // 10):
        data = {"name": "toy", "examples": examples, "shape": [1, 2, 2], "train_examples": 10 * clients}
        settings = TOY_RUN | {"clients": clients, "participation": 100 / clients, "data": data}
        row = {"clients": clients, "taking_part": 100}
        rows.append(tried(row, lambda: _scale_run(lab, settings)))  # noqa: B023
    columns = ("clients", "taking_part", "seconds", "start_up", "peak_mb", "held_mb", "growth_per_round_mb", "note")
    show("100 participants a round, personal heads", rows, columns)
    return rows


def _scale_run(lab: Lab, settings: dict[str, Any]) -> dict[str, Any]:
    peak = PeakMemory()
    with lab.child("whole_run") as child:
        ready = child.ready()
        with peak.of(child.mark):
            answer = child.ask(settings=settings, rounds=20, bare=False)
    rounds, memory = answer["figures"]["round"], answer["figures"]["memory"]
    return {
        "seconds": min(rounds[1:]),
        "median_seconds": statistics.median(rounds[1:]),
        "start_up": ready + rounds[0] - min(rounds[1:]),
        "peak_mb": peak.bytes / 1e6,
        "held_mb": memory[-1] / 1e6,
        "growth_per_round_mb": (memory[-1] - memory[4]) / (len(memory) - 5) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="only the smallest case of each part; write nothing")
    options = parser.parse_args()
    measures = {"messages": messages, "training": training, "run": whole_runs, "scale": scale}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job, _ = Job.read(CLIENTS)
        job.share(Path(folder) / "job.npz")
        lab = Lab(Path(folder))
        for part in options.parts:
            load = os.getloadavg()[0]
            rows += [{"part": part} | row | {"load": load} for row in measures[part](lab, options.quick)]
    if not options.quick:
        save("overhead", describe(), {}, rows, lambda row: row["part"] not in options.parts)


if __name__ == "__main__":
    main()
