"""A whole run as by `fedsim run`, round by round against a bare loop: a child process of `benchmarks.overhead`."""

import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import MARK, Answers
from benchmarks.machine import processors
from benchmarks.processes import cpu_seconds, marked, pss_bytes
from fedsim.config import Config
from fedsim.config.choices import resolve
from fedsim.experiment import run as experiment
from fedsim.experiment.rounds import RoundSummary
from fedsim.federation.data import federated_data_of
from fedsim.federation.federation import federation_of
from fedsim.models.params import load_state_
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.seeds import rng
from fedsim.training import LocalPlan, train_


class _EnoughError(Exception):
    """Ends the run before its last round, which always evaluates."""


class BareLoop:
    """Local training of all clients on one thread per processor, and nothing else."""

    def __init__(self, config: Config) -> None:
        federation = federation_of(config)
        data = federated_data_of(config)
        self._data = [data.client(client).train for client in range(config.clients)]
        self._initial, self._settings = federation.initial, config.local
        self._federation = federation
        self._own = threading.local()

    def run_round(self) -> None:
        """Train every client once."""
        with ThreadPoolExecutor(processors(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(self._train, range(len(self._data))))

    def _train(self, client: int) -> None:
        model = self._federation.model()
        load_state_(model, self._initial)
        train_(model, *self._data[client], LocalPlan(), self._settings, rng(0, "bare", client))


class Watch:
    """The cost of each round, and of the bare loop after it."""

    def __init__(self, rounds: int, bare: BareLoop | None) -> None:
        self._left, self._bare = rounds, bare
        self._mark = f"{MARK}={os.environ[MARK]}"
        self.figures: dict[str, list[float]] = {"round": [], "round_cpu": [], "bare": [], "bare_cpu": [], "memory": []}
        self._since = (time.perf_counter(), self._cpu())

    def round_done(self, _: RoundSummary) -> None:
        """Record the round and run the bare loop."""
        self._note("round")
        self.figures["memory"].append(pss_bytes([os.getpid()]))
        if self._bare:
            self._since = (time.perf_counter(), self._cpu())
            self._bare.run_round()
            self._note("bare")
        self._left -= 1
        if not self._left:
            raise _EnoughError
        self._since = (time.perf_counter(), self._cpu())

    def _note(self, name: str) -> None:
        self.figures[name].append(time.perf_counter() - self._since[0])
        self.figures[f"{name}_cpu"].append(self._cpu() - self._since[1])

    def _cpu(self) -> float:
        others = [pid for pid in marked(self._mark) if pid != os.getpid()]
        return time.process_time() + cpu_seconds(others)


def run_rounds(request: dict[str, Any]) -> dict[str, Any]:
    """Run the rounds of a run; return the figures of each, and its own timing of its parts."""
    rounds = request["rounds"]
    config = resolve(Config.parse(request["settings"] | {"rounds": rounds + 1}, "benchmark"))
    watch = Watch(rounds, BareLoop(config) if request["bare"] else None)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        with suppress(_EnoughError):
            experiment.run(config, run, watch.round_done)
        timing = read_rows(run.timing).drop(columns="round").fillna(0.0)
    return {"figures": watch.figures, "parts": timing.to_dict(orient="list")}


def main() -> None:
    """Serve requests, each by a run."""
    Answers().serve(run_rounds)
