"""Whole jobs: the time from the command to the answer, against other simulators, and what a client costs in a round.

Run with ``python benchmarks/jobs.py``; see ``--help``. A job of fedsim is ``fedsim run`` in a process of its own:
start, partition, training, evaluation of all clients and on the server's test data in each round, records, table and
page. A peer's job is its start, as many rounds of its own FedAvg on as many examples, and the same evaluation by a
plain loop over tensors in memory, without any record. Jobs take turns, so that other load affects all of them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.child import MARK, ROOT, Child, command_of, own_mark
from benchmarks.environments import PEERS, environment
from benchmarks.job import BATCH, CLIENTS, EXAMPLES, LR, MOMENTUM, Job, settings_of
from benchmarks.machine import describe
from benchmarks.processes import Others, PeakMemory, cpu_seconds, ended_cpu_seconds, marked
from benchmarks.results import note_of, save, show

ROUNDS, RUNS = 20, 30
WATCHED = 3  # rounds of the job whose memory is watched, which slows it down
GOALS = {"seconds of mlp": 5.0, "ms a client and round": 0.5, "sweep, times the best peer": 2.0}
OURS = "fedsim"
PEER_COMMANDS = {
    "flower": command_of("flower_training"),
    **{name: ["-P", str(ROOT / "benchmarks" / "peers" / f"{name}.py")] for name in PEERS},
}
MODES = {"blazefl": ["threads"]}
# Each client has 600 examples to train on and 150 to be tested on.
EXPERIMENT = f"""
rounds = {{rounds}}
clients = {CLIENTS}
device = "cpu"

[data]
name = "fashion-mnist"
train_examples = {CLIENTS * EXAMPLES * 5 // 4}

[partition]
scheme = "iid"
validation = 0.0
test = 0.2

[model]
name = "{{model}}"

[local]
batch_size = {BATCH}
lr = {LR}
momentum = {MOMENTUM}

[strategy]
name = "{{strategy}}"
{{options}}

[barriers]
every = 0
"""
STRATEGIES = {"fedavg": ("full", ""), "fedper": ("layer_set", 'shared = "body"')}
JOB_COLUMNS = ("model", "strategy", "simulator", "runs", "seconds", "cpu_seconds", "peak_mb", "times_fedsim", "note")
Figures = dict[str, float]


class Jobs:
    """Runs jobs, each in new processes.

    Parameters
    ----------
    folder
        Folder for logs and runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def fedsim(self, model: str, strategy: str, rounds: int, runs: int = 1, *, watched: bool = False) -> Figures:
        """Run ``fedsim run``, with as many seeds as there are runs."""
        self._number += 1
        out = self._folder / f"job-{self._number}"
        out.mkdir()
        name, options = STRATEGIES[strategy]
        text = EXPERIMENT.format(rounds=rounds, model=model, strategy=name, options=options)
        if runs > 1:
            text += f"\n[sweep]\nseed = {list(range(runs))}\n"
        (out / "job.toml").write_text(text)
        mark = f"{own_mark()}{self._number}"
        before, start, peak = ended_cpu_seconds(), time.perf_counter(), PeakMemory()
        with (out / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedsim", "run", str(out / "job.toml"), "--out", str(out)],
                env=os.environ | {MARK: mark.partition("=")[2], "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
            with peak.of(mark) if watched else nullcontext():
                code = process.wait()
        seconds = time.perf_counter() - start
        if code:
            raise RuntimeError((out / "log").read_text().strip().splitlines()[-1])
        cpu = ended_cpu_seconds() - before
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak.bytes / 1e6}

    def peer(self, name: str, model: str, rounds: int, *, watched: bool = False) -> Figures:
        """Run a peer's rounds, each with an evaluation."""
        command = list(PEER_COMMANDS[name])
        if name in PEERS:
            command = [str(environment(name)), *command, *MODES.get(name, [])]
        peak, start = PeakMemory(), time.perf_counter()
        with Child(command, self._folder / f"{name}.log") as child:
            child.ready()
            for _ in range(rounds):
                child.ask(model=model, clients=CLIENTS, evaluate=True)
            cpu = cpu_seconds(marked(child.mark))
            if watched:
                with peak.of(child.mark):
                    child.ask(model=model, clients=CLIENTS, evaluate=True)
        return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu, "peak_mb": peak.bytes / 1e6}


def in_turn(variants: dict[str, Callable[..., Figures]], repeats: int) -> list[dict[str, Any]]:
    """Return the shortest of several jobs of each variant, which take turns, and the peak memory of another one."""
    found: dict[str, list[Figures]] = {name: [] for name in variants}
    notes: dict[str, str] = {}
    for _ in range(repeats):
        for name, run in variants.items():
            if name in notes:
                continue
            others = Others(own_mark())
            try:
                found[name].append(run() | {"others_took": others.share()})
            except (RuntimeError, OSError) as error:
                notes[name] = note_of(error)
            print(".", end="", flush=True)
    if OURS in notes:
        raise RuntimeError(f"the job of {OURS}, with which the others are compared, failed: {notes[OURS]}")
    rows = []
    for name, run in variants.items():
        row: dict[str, Any] = {"simulator": name}
        if name in notes:
            rows.append(row | {"note": notes[name]})
            continue
        row |= min(found[name], key=lambda each: each["seconds"])
        row["cpu_seconds"] = min(each["cpu_seconds"] for each in found[name])
        with suppress(RuntimeError, OSError):
            row["peak_mb"] = run(watched=True)["peak_mb"]
        rows.append(row)
    ours = next(row for row in rows if row["simulator"] == OURS)
    return [row | ({"times_fedsim": row["seconds"] / ours["seconds"]} if "seconds" in row else {}) for row in rows]


def whole_jobs(jobs: Jobs, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a job of each simulator, for each model; FedPer with fedsim alone."""
    rows = []
    for model in options.models:
        for strategy in options.strategies:
            variants: dict[str, Callable[..., Figures]] = {
                OURS: lambda m=model, s=strategy, **more: jobs.fedsim(m, s, WATCHED if more else options.rounds, **more)
            }
            for peer in options.peers if strategy == "fedavg" else ():
                variants[peer] = lambda p=peer, m=model, **more: jobs.peer(
                    p, m, WATCHED if more else options.rounds, **more
                )
            given = {"part": "jobs", "model": model, "strategy": strategy, "runs": 1, "rounds": options.rounds}
            rows += [given | row for row in in_turn(variants, options.repeats)]
    show(f"Whole jobs of {options.rounds} rounds; the peers' are FedAvg", rows, JOB_COLUMNS)
    return rows


def sweep(jobs: Jobs, options: argparse.Namespace, single: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure a sweep; peers have none, so that theirs takes as long as that many jobs one after the other."""
    given = {"part": "sweep", "model": "mlp", "strategy": "fedavg", "runs": options.runs, "rounds": options.rounds}
    # Its processes are not all children of children, so that their processor time and memory are not known.
    seconds = jobs.fedsim("mlp", "fedavg", options.rounds, options.runs)["seconds"]
    rows = [given | {"simulator": OURS, "seconds": seconds}]
    for row in single:
        if (row["model"], row["strategy"]) == ("mlp", "fedavg") and row["simulator"] != OURS and "seconds" in row:
            whole = {"seconds": options.runs * row["seconds"], "note": "one after the other, extrapolated"}
            rows.append(given | {"simulator": row["simulator"]} | whole)
    rows = [row | {"times_fedsim": row["seconds"] / seconds} for row in rows]
    show(f"A sweep of {options.runs} runs", rows, JOB_COLUMNS)
    return rows


def per_client(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure what a client costs in a round besides its training, with one worker, against the bare loop."""
    settings = settings_of("mlp") | {"engine": {"workers": 1}}
    command = command_of("whole_run")
    rows = []
    for name, every in (("train", 10**6), ("train and evaluate", 1)):
        with Child(command, folder / "log") as child:
            child.ready()
            figures = child.ask(settings=settings | {"evaluate_every": every}, rounds=rounds, bare=True)["figures"]
        pairs = zip(figures["round_cpu"][1:], figures["bare_cpu"][1:], strict=True)
        beyond = statistics.median(1e3 * (of_round - bare) / CLIENTS for of_round, bare in pairs)
        bare = statistics.median(1e3 * each / CLIENTS for each in figures["bare_cpu"][1:])
        rows.append({"part": "client", "model": "mlp", "round": name, "bare_ms": bare, "beyond_ms": beyond})
    show(
        "Processor milliseconds of a client in a round, beyond the bare loop's", rows, ("round", "bare_ms", "beyond_ms")
    )
    return rows


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp"], choices=["mlp", "cnn"])
    parser.add_argument("--strategies", nargs="+", default=["fedavg", "fedper"], choices=list(STRATEGIES))
    parser.add_argument("--peers", nargs="*", default=list(PEER_COMMANDS), choices=list(PEER_COMMANDS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--runs", type=int, default=RUNS, help="of the sweep; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one short job of each simulator; nothing is written")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.runs, options.repeats = 2, 0, 1
    with tempfile.TemporaryDirectory() as folder:
        data, _ = Job.read(CLIENTS)
        data.share(Path(folder) / "job.npz")
        jobs = Jobs(Path(folder))
        rows = per_client(Path(folder), 3 if options.quick else 10)
        rows += whole_jobs(jobs, options)
        if options.runs:
            rows += sweep(jobs, options, rows[2:])
    if not options.quick:
        save("jobs", describe(), GOALS, rows)


if __name__ == "__main__":
    main()
