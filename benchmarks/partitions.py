"""Time and memory of partitioning, against the limits of the hardware and against the usual code.

Run with ``python benchmarks/partitions.py``; it takes about two minutes.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.machine import describe
from benchmarks.results import save
from partitions import PARTITIONS, LabelCounts, hold_out

EXAMPLES, CLASSES = 1_280_000, 1000
CLIENTS = (10, 1_000, 10_000, 100_000)
# The minimum that a partition reads and writes: a label, an owner and an index for each example.
BYTES_PER_EXAMPLE = 24
OPTIONS: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "min_size": 0},
    "dirichlet, balanced": {"alpha": 0.5, "min_size": 0, "balanced": True},
    "client_dirichlet": {"alpha": 10.0},
    "shards": {"classes_per_client": 2},
    "quantity": {"alpha": 1.0},
}


def per_class_loop(labels: np.ndarray, clients: int) -> list[np.ndarray]:
    """Split each class at its cumulative Dirichlet shares, as most papers' code does, with NumPy arrays."""
    rng = np.random.default_rng(0)
    pieces: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(clients, 0.5))) * len(members)).astype(int)[:-1]
        for own, piece in zip(pieces, np.split(members, cuts), strict=True):
            own.append(piece)
    return [np.concatenate(own) for own in pieces]


def list_of_lists_loop(labels: np.ndarray, clients: int) -> list[list[int]]:
    """Do the same with a Python list for each client, as Flower Datasets does."""
    rng = np.random.default_rng(0)
    held: list[list[int]] = [[] for _ in range(clients)]
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        rng.shuffle(members)
        cuts = (np.cumsum(rng.dirichlet(np.full(clients, 0.5))) * len(members)).astype(int)[:-1]
        for own, piece in zip(held, np.split(members, cuts), strict=True):
            own.extend(piece.tolist())
    return held


def measured(call: Callable[[], Any], repeats: int = 1) -> float:
    """Return the shortest wall time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the peak memory of the call, including its result."""
    tracemalloc.start()
    try:
        result = call()  # noqa: F841 (held until the peak is read)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bandwidth() -> float:
    """Return the bytes per second of a copy, counting reads and writes."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return 2 * source.nbytes / measured(lambda: np.copyto(target, source), 5)


def schemes(labels: np.ndarray, clients: int) -> dict[str, Callable[[], Any]]:
    """Return a call of each scheme that applies to this number of clients, by name."""
    rng = np.random.default_rng(0)
    options = OPTIONS | {
        "natural": {"ids": {"writer": rng.permutation(EXAMPLES) % clients}},
        "domain": {"ids": {"place": rng.integers(6, size=EXAMPLES)}},
    }
    if clients * OPTIONS["shards"]["classes_per_client"] < CLASSES:
        del options["shards"]
    if clients * CLASSES <= EXAMPLES:
        # Lists of floats are only for tables that fit into a config or a file.
        options["matrix"] = {"matrix": rng.random((clients, CLASSES)).tolist()}

    def call(name: str, settings: dict[str, Any]) -> Callable[[], Any]:
        function = PARTITIONS[name.partition(",")[0]]
        return lambda: function(labels, clients, np.random.default_rng(0), **settings)

    return {name: call(name, settings) for name, settings in options.items()}


def afterwards(labels: np.ndarray, clients: int) -> dict[str, Callable[[], Any]]:
    """Return the calls that follow a partition, by name."""
    partition = PARTITIONS["iid"](labels, clients, np.random.default_rng(0))

    def statistics() -> None:
        counts = LabelCounts.of(partition, labels, CLASSES)
        counts.effective_classes(), counts.total_variation(), counts.jensen_shannon()

    return {
        "hold_out": lambda: hold_out(partition, np.random.default_rng(0), validation=0.1, test=0.2),
        "LabelCounts": statistics,
    }


def main() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(EXAMPLES) % CLASSES)
    rate = bandwidth()
    limit = BYTES_PER_EXAMPLE * EXAMPLES / rate
    sort = measured(lambda: np.argsort(labels, kind="stable"), 3)
    print(f"{EXAMPLES:,} examples, {CLASSES:,} classes; NumPy {np.__version__}; least of 3 under a second")
    print(f"limit: {BYTES_PER_EXAMPLE} bytes per example at the {rate / 1e9:.1f} GB/s of a copy: {limit:.4f} s")
    print(f"one stable argsort of the 64-bit labels: {sort:.3f} s")
    print(f"\n{'':22}{'clients':>9}{'seconds':>10}{'peak MB':>10}{'x limit':>10}{'x argsort':>11}{'examples/s':>13}")

    rows: list[dict[str, Any]] = []

    def report(name: str, clients: int, seconds: float, peak: int | None) -> None:
        row = {"what": name, "clients": clients, "seconds": seconds, "peak_mb": None if peak is None else peak / 1e6}
        rows.append(row | {"of_limit": limit / seconds, "argsorts": seconds / sort})
        megabytes = "" if peak is None else f"{peak / 1e6:.0f}"
        print(
            f"{name:22}{clients:>9,}{seconds:>10.3f}{megabytes:>10}{seconds / limit:>10.1f}{seconds / sort:>11.2f}"
            f"{EXAMPLES / seconds:>13,.0f}",
            flush=True,
        )

    dirichlet = {}
    for clients in CLIENTS:
        for name, call in (schemes(labels, clients) | afterwards(labels, clients)).items():
            seconds = measured(call)
            # A short call is timed again, so that the first use of its memory does not count.
            seconds = measured(call, 3) if seconds < 1 else seconds
            report(name, clients, seconds, peak_bytes(call))
            if name == "dirichlet":
                dirichlet[clients] = seconds
    print("\npeers: the same Dirichlet partition by the usual code")
    for clients in CLIENTS[:3]:
        for peer in (per_class_loop, list_of_lists_loop):
            tracing = clients < CLIENTS[2]  # tracing slows down with millions of small objects
            seconds = measured(lambda: peer(labels, clients))  # noqa: B023 (called at once)
            peak = peak_bytes(lambda: peer(labels, clients)) if tracing else None  # noqa: B023
            report(peer.__name__, clients, seconds, peak)
            print(f"{'':22}{clients:>9,}  dirichlet is {seconds / dirichlet[clients]:.1f} times as fast")
    limits = {"copy_gb_per_s": rate / 1e9, "seconds": limit, "argsort_seconds": sort}
    save("partitions", describe(), limits, rows, examples=EXAMPLES, classes=CLASSES)


if __name__ == "__main__":
    main()
