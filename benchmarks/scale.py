"""The driver's processor time for a client and a round in the ``ray`` engine, by clients of a round and workers.

Run with ``python benchmarks/scale.py``; see ``--help``. The clients send back what they received. More workers than
processors are stand-ins: the driver has a separate queue and separate calls for each of 64, as on 64 machines with one
processor, but they take turns in as many processes as there are processors, so this measures the driver and no network.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"RAY_prestart_worker_first_driver": "0"}  # or Ray would start a process for each worker

import ray
from flwr.app import ConfigRecord

from benchmarks.machine import describe, processors
from benchmarks.results import save, show
from benchmarks.simulation import make_app, make_payload
from fedsim.federation.engines.actor import Actor
from fedsim.federation.engines.ray import RayEngine
from fedsim.federation.engines.workers import Workers
from fedsim.models.params import state_of
from fedsim.strategy import Strategy

CLIENTS, WORKERS = (100, 1_000, 10_000), (2, 8, 64)
REGISTERED = max(CLIENTS)
FIRST = 2  # rounds before the measured ones
ROUNDS = 20  # measured rounds at most
SECONDS = 5.0  # after which no further round is measured
LIMIT_MS = 0.3
COLUMNS = ("workers", "clients", "rounds", "driver_ms", "median_ms", "limit", "of_limit")


def take_turns() -> None:
    """Let the workers of an engine share as many processes as this machine has processors."""

    def kind(_: Workers) -> Any:
        made: list[Any] = []
        turns = itertools.count()

        def remote(scratch: str | None) -> Any:
            turn = next(turns)
            if turn < processors():
                made.append(ray.remote(num_cpus=0)(Actor).remote(scratch))
            return made[turn % len(made)]

        return SimpleNamespace(remote=remote)

    Workers._kind = kind  # type: ignore[method-assign]


def rounds(engine: RayEngine, clients: int) -> Iterator[float]:
    """Yield the driver's processor seconds of one round after the other, from the sampling to the new model."""
    model = make_payload("tiny")
    strategy = Strategy(model, participation=clients / REGISTERED)
    strategy.set_global_model({key: value.clone() for key, value in state_of(model).items()})
    for server_round in itertools.count(1):
        began = time.process_time()
        sent = list(strategy.configure_train(server_round, strategy.arrays, ConfigRecord(), engine))
        received = strategy.receive(server_round, engine.send_and_receive(sent), in_order=True)
        strategy.step(server_round, received)
        taken = time.process_time() - began
        if len(received.updates) != clients:
            raise RuntimeError(f"{len(received.updates)} of {clients} clients replied")
        yield taken


def measured(engine: RayEngine, clients: int) -> list[float]:
    """Return the seconds of rounds, without the first ones, the shortest first."""
    each = rounds(engine, clients)
    for _ in range(FIRST):
        next(each)
    taken, end = [next(each)], time.perf_counter() + SECONDS
    while len(taken) < ROUNDS and time.perf_counter() < end:
        taken.append(next(each))
    return sorted(taken)


def main() -> None:
    """Measure all numbers of workers, each with all numbers of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the smallest number of workers; write nothing")
    quick = parser.parse_args().quick
    take_turns()
    rows: list[dict[str, Any]] = []
    for workers in WORKERS[: 1 if quick else None]:
        with RayEngine(partial(make_app, "tiny", "nothing"), REGISTERED, workers) as engine:
            for clients in CLIENTS:
                taken = [1e3 * seconds / clients for seconds in measured(engine, clients)]
                row = {"workers": workers, "clients": clients, "rounds": len(taken), "driver_ms": taken[0]}
                row |= {"median_ms": statistics.median(taken), "limit": LIMIT_MS, "of_limit": taken[0] / LIMIT_MS}
                rows.append(row | {"load": os.getloadavg()[0]})
    show("Processor milliseconds of the driver for a client and a round, and the share of the limit", rows, COLUMNS)
    if not quick:
        save("scale", describe(), {"driver_ms": LIMIT_MS}, rows)


if __name__ == "__main__":
    main()
