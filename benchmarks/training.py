"""Local training: time against the machine's limit, the usual loops and other simulators.

Run with ``python benchmarks/training.py``; see ``--help``. It needs torch, torchvision and NumPy only; Flower and the
peers take part if they can be installed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

# This folder's partitions.py is not the package of that name.
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from benchmarks import job as jobs
from benchmarks.child import ROOT, Child, command_of
from benchmarks.environments import PEERS, environment
from benchmarks.job import Job
from benchmarks.machine import describe, gemm_limit, memory_bandwidth, processors, release
from benchmarks.results import note_of, save, show
from benchmarks.timing import QUIET, Samples, seconds_of, take_turns

COLUMNS = (
    "model",
    "variant",
    "clients",
    "seconds",
    "others_took",
    "gflop_per_s",
    "of_limit",
    "fedsim_is_faster_by",
    "note",
)
OURS, IN_BFLOAT16 = "fedsim", "bfloat16 in fedsim"
COHORTS = {"cpu": (), "cuda": (5, 20, 100)}
GPU_CLIENTS = 100
PEER_NAMES = ("flower", "blazefl-threads", "blazefl-processes", *(name for name in PEERS if name != "blazefl"))
Call = Callable[[], float]
Precision = Literal["float32", "bfloat16"]


def fedsim_threads(job: Job, model_name: str, clients: int, precision: Precision = "float32") -> Call:
    """Return fedsim's training as in its engine ``local``: a client per thread, with one intra-op thread each."""
    from fedsim.training import SGD, LocalPlan, train_

    settings = SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM, precision=precision)
    models = [jobs.make_model(model_name) for _ in range(processors())]
    initial = jobs.make_model(model_name).state_dict()
    data = [job.channels_last(client) for client in range(clients)]
    free = list(models)

    def train(client: int) -> None:
        model = free.pop()
        model.load_state_dict(initial)
        inputs, targets = data[client]
        train_(model, inputs, targets, LocalPlan(), settings, np.random.default_rng(client))
        free.append(model)

    def run_round() -> float:
        with ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return seconds_of(lambda: list(pool.map(train, range(clients))))

    return on_one_thread(run_round)


def fedsim_sequential(job: Job, model_name: str, clients: int, device: str, precision: Precision = "float32") -> Call:
    """Return fedsim's training of one client after the other on a GPU."""
    from fedsim.training import SGD, LocalPlan, train_

    settings = SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM, precision=precision)
    model = jobs.make_model(model_name).to(device)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    data = [job.channels_last(client, device) for client in range(clients)]

    def train() -> None:
        for client, (inputs, targets) in enumerate(data):
            model.load_state_dict(initial)
            train_(model, inputs, targets, LocalPlan(), settings, np.random.default_rng(client))

    return lambda: seconds_of(train, device)


def plain_loop(job: Job, model_name: str, clients: int, device: str) -> Call:
    """Return the loop of a plain script over tensors in memory, one client after the other, with torch's threads."""
    model = jobs.make_model(model_name).to(device)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    data = [job.tensors(client, device) for client in range(clients)]

    def train() -> None:
        for inputs, targets in data:
            model.load_state_dict(initial)
            jobs.plain_loop_(model, inputs, targets)

    return lambda: seconds_of(train, device)


def usual_loop(job: Job, model_name: str, clients: int, device: str) -> Call:
    """Return the usual loop over a DataLoader, one client after the other, with torch's threads."""
    model = jobs.make_model(model_name).to(device)
    initial = {key: value.clone() for key, value in model.state_dict().items()}

    def train() -> None:
        for client in range(clients):
            model.load_state_dict(initial)
            jobs.usual_loop_(model, job.loader(client), device)

    return lambda: seconds_of(train, device)


def on_one_thread(call: Call) -> Call:
    """Return the same variant with one intra-op thread."""

    def run_round() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(before)

    return run_round


class Peers:
    """Other simulators, each in its own process, which is started once and runs a round when it is its turn."""

    def __init__(self, names: Sequence[str], logs: Path, stack: ExitStack) -> None:
        self.missing: dict[str, str] = {}
        self.children: dict[str, Child] = {}
        for name in names:
            try:
                child = stack.enter_context(Child(self._command(name), logs / f"{name}.log"))
                child.ready()
                self.children[name] = child
            except (RuntimeError, OSError, ImportError) as error:
                self.missing[name] = note_of(error)

    def calls(self, model_name: str, clients: int) -> dict[str, Call]:
        """Return a call for each peer that runs, by name."""
        return {name: self._call(child, model_name, clients) for name, child in self.children.items()}

    @staticmethod
    def _call(child: Child, model_name: str, clients: int) -> Call:
        return lambda: child.ask(model=model_name, clients=clients)["seconds"]

    @staticmethod
    def _command(name: str) -> list[str]:
        if name == "flower":
            if not find_spec("flwr") or not find_spec("ray"):
                raise ImportError("flwr[simulation] is not installed")
            return command_of("flower_training")
        package, _, mode = name.partition("-")
        script = ROOT / "benchmarks" / "peers" / f"{package}.py"
        # Without -P the script's folder would come first, and its name is that of the peer's package.
        return [str(environment(package)), "-P", str(script), *([mode] if mode else [])]


def in_process(job: Job, model_name: str, clients: int, device: str, sizes: Sequence[int]) -> dict[str, Call]:
    """Return the variants of this process by name; fedsim's are left out where it cannot be imported."""
    variants: dict[str, Call] = {}
    try:
        if device == "cpu":
            variants[OURS] = fedsim_threads(job, model_name, clients)
            variants[IN_BFLOAT16] = fedsim_threads(job, model_name, clients, "bfloat16")
        else:
            variants[OURS] = fedsim_sequential(job, model_name, clients, device)
            variants[IN_BFLOAT16] = fedsim_sequential(job, model_name, clients, device, "bfloat16")
        variants |= cohorts(job, model_name, clients, device, sizes)
    except ImportError as error:
        print(f"fedsim cannot train here: {error}")
    variants["plain loop"] = plain_loop(job, model_name, clients, device)
    variants["DataLoader loop"] = usual_loop(job, model_name, clients, device)
    if device == "cpu":
        # torch's threads wait for each other, which is expensive if others use the machine; a single one does not.
        variants |= {f"{name}, one thread": on_one_thread(variants[name]) for name in ("plain loop", "DataLoader loop")}
    return variants


def cohorts(job: Job, model_name: str, clients: int, device: str, sizes: Sequence[int]) -> dict[str, Call]:
    """Return fedsim's training of several clients as one computation, by the size of the cohort."""
    from fedsim.models.params import state_of
    from fedsim.training import SGD, LocalPlan, LocalTask, train_cohort

    settings = SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM)
    model = jobs.make_model(model_name).to(device)
    initial = {key: value.clone() for key, value in state_of(model).items()}
    data = [job.channels_last(client, device) for client in range(clients)]

    def train(size: int) -> None:
        tasks = [
            LocalTask(initial, inputs, targets, np.random.default_rng(client))
            for client, (inputs, targets) in enumerate(data)
        ]
        for start in range(0, clients, size):
            train_cohort(model, tasks[start : start + size], LocalPlan(), settings)

    def call(size: int) -> Call:
        return lambda: seconds_of(lambda: train(size), device)

    return {f"{OURS}, cohorts of {size}": call(size) for size in sizes if size <= clients}


def rows_of(
    model_name: str, clients: int, samples: dict[str, Samples], missing: dict[str, str], gemm: float
) -> list[dict[str, Any]]:
    """Return a row for each variant; the last column compares with the fastest of fedsim's in float32."""
    flop = jobs.flop_per_example(model_name) * jobs.EXAMPLES * clients
    found = {name: sample.figures() for name, sample in samples.items()}
    ours = min((figures["seconds"] for name, figures in found.items() if name.startswith(OURS)), default=None)
    rows: list[dict[str, Any]] = [
        {"model": model_name, "variant": name, "clients": clients}
        | figures
        | {
            "gflop_per_s": flop / figures["seconds"] / 1e9,
            "of_limit": flop / figures["seconds"] / gemm,
            "fedsim_is_faster_by": figures["seconds"] / ours if ours else None,
        }
        for name, figures in found.items()
    ]
    return rows + [{"model": model_name, "variant": name, "note": reason} for name, reason in missing.items()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=jobs.MODELS, default=list(jobs.MODELS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", nargs="*", default=PEER_NAMES)
    parser.add_argument("--cohorts", nargs="*", type=int, help="sizes of cohorts; on a GPU 5, 20 and 100")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="no peers, one repeat, nothing is written")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    # Other simulators are measured on the CPU, which all of them support.
    names = [] if options.quick or options.device != "cpu" else options.peers
    repeats = 1 if options.quick else options.repeats
    clients = GPU_CLIENTS if options.device == "cuda" else jobs.CLIENTS
    sizes = COHORTS[options.device] if options.cohorts is None else options.cohorts
    job, data = Job.read(clients)
    # The limit is the best of all samples, as for the variants.
    gemm, bandwidth = [gemm_limit(options.device)], memory_bandwidth(options.device)
    print(f"{data}, {jobs.EXAMPLES} examples per client, one epoch of batches of {jobs.BATCH}, SGD with momentum")
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job.share(folder / "job.npz")
        peers = Peers(names, folder, stack)
        for model_name in options.models:
            release(options.device)
            count = jobs.CLIENTS_OF.get(model_name, clients) if options.device == "cpu" else clients
            variants = in_process(job, model_name, count, options.device, sizes) | peers.calls(model_name, count)
            missing = dict(peers.missing)
            samples = take_turns(
                variants, repeats, lambda: gemm.append(gemm_limit(options.device)), partial(_note, missing)
            )
            now = rows_of(model_name, count, samples, missing, max(gemm))
            show(f"{model_name}; limit: {max(gemm) / 1e9:,.0f} GFLOP/s", now, COLUMNS)
            if max((row.get("others_took", 0.0) for row in now), default=0.0) > QUIET:
                print("other processes were active: loops with several threads look slower than they are")
            sys.stdout.flush()
            rows += now
    limits = {"gemm_gflop_per_s": max(gemm) / 1e9, "memory_gb_per_s": bandwidth / 1e9}
    for row in rows:
        if "gflop_per_s" in row:
            row["of_limit"] = row["gflop_per_s"] / limits["gemm_gflop_per_s"]
    if not options.quick:
        name = "training" if options.device == "cpu" else f"training-{options.device}"
        stands = lambda row: row["model"] not in options.models  # noqa: E731
        save(name, describe(options.device), limits, rows, stands, data=data, repeats=repeats)


def _note(missing: dict[str, str], name: str, error: Exception) -> None:
    missing[name] = note_of(error)


if __name__ == "__main__":
    main()
