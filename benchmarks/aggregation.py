"""Averaging of 10 and 100 ResNet-18 models: time against the memory's bandwidth and Flower, and peak memory.

Run with ``python benchmarks/aggregation.py``; it holds 100 models of 45 MB once. ``--quick`` averages 10 only.
"""

import argparse
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from benchmarks.machine import describe, memory_bandwidth
from benchmarks.processes import PROC
from benchmarks.results import save, show
from benchmarks.timing import seconds_of, take_turns
from fedsim.models.architectures.resnet import resnet18
from fedsim.models.averaging import WeightedMean, weighted_mean
from fedsim.models.params import Params, flat_copy, state_of

MEMBERS = (10, 100)
REPEATS = 7
COLUMNS = (
    "models",
    "variant",
    "seconds",
    "gb_per_s",
    "of_limit",
    "peak_models",
    "fedsim_is_faster_by",
    "best_kernel_is_faster_by",
)
BEST = "matrix product, float32"
OURS = "fedsim, float64"


def uploads(count: int) -> tuple[list[Params], Tensor]:
    """Return flat models, as after an upload, and the matrix whose rows they are, for kernels that need one.

    Entries are aligned to 64 bytes; the padding of the matrix holds zeros.
    """
    template = flat_copy(state_of(resnet18((3, 32, 32), 10, norm="group")))
    start = next(iter(template.values())).data_ptr()
    offsets = {key: (value.data_ptr() - start) // value.element_size() for key, value in template.items()}
    width = max(offsets[key] + value.numel() for key, value in template.items())
    rows = torch.zeros(count, -(-width // 16) * 16)
    members = [
        {key: row[offsets[key] : offsets[key] + value.numel()].view(value.shape) for key, value in template.items()}
        for row in rows
    ]
    for member in members:
        for value in member.values():
            value.normal_(std=0.01)
    return members, rows


def variants_of(members: list[Params], weights: list[float], rows: Tensor) -> dict[str, Callable[[], Any]]:
    """Return a call of each variant, by name."""
    share = torch.tensor(weights) / sum(weights)

    def streamed(dtype: torch.dtype) -> Params:
        mean = WeightedMean(dtype)
        for member, weight in zip(members, weights, strict=True):
            mean.add(member, weight)
        return mean.result()

    def usual() -> Params:
        return {
            key: torch.stack([member[key] * float(w) for member, w in zip(members, share, strict=True)]).sum(0)
            for key in members[0]
        }

    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: weighted_mean(members, weights, torch.float64),
        "fedsim, float32": lambda: weighted_mean(members, weights, torch.float32),
        "fedsim, float64, streaming": lambda: streamed(torch.float64),
        "fedsim, float32, streaming": lambda: streamed(torch.float32),
        BEST: lambda: share[None] @ rows,
        "stack and sum": usual,
    }
    if flower := flower_call(members, weights):
        calls["Flower's aggregate_arrayrecords"] = flower
    return calls


def flower_call(members: list[Params], weights: list[float]) -> Callable[[], Any] | None:
    """Return Flower's averaging of the same models, which arrive as bytes, or None if Flower is not installed."""
    try:
        from flwr.app import ArrayRecord, MetricRecord, RecordDict
        from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    except ImportError:
        return None
    # Each record holds its own bytes; more than ten would repeat the same work in twice the memory.
    if len(members) > MEMBERS[0]:
        return None
    records = [
        RecordDict({"arrays": ArrayRecord(member), "metrics": MetricRecord({"num-examples": weight})})
        for member, weight in zip(members, weights, strict=True)
    ]
    return lambda: aggregate_arrayrecords(records, "num-examples")


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the peak memory of a call beyond the memory in use before it, including its result."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory would be reused unnoticed
    clear = PROC / "self" / "clear_refs"
    if not clear.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    before = _status("VmRSS")
    clear.write_text("5")  # resets the peak to the memory in use now
    result = call()
    peak = _status("VmHWM")
    del result
    return peak - before


def _status(field: str) -> int:
    lines = (PROC / "self" / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def check(members: list[Params], weights: list[float]) -> None:
    """Check that fedsim's mean is that of a sum in float64."""
    mean = weighted_mean(members, weights)
    for key in list(mean)[:2]:
        total = sum(member[key].double() * weight for member, weight in zip(members, weights, strict=True))
        torch.testing.assert_close(mean[key].double(), total / sum(weights), rtol=1e-5, atol=1e-8)


def measure(count: int, repeats: int, bandwidth: float) -> list[dict[str, Any]]:
    """Return a row for each variant."""
    members, rows = uploads(count)
    size = sum(value.numel() for value in members[0].values())
    weights = [float(100 + k) for k in range(count)]
    check(members, weights)
    calls = variants_of(members, weights, rows)
    samples = take_turns({name: lambda call=call: seconds_of(call) for name, call in calls.items()}, repeats)  # type: ignore[misc]
    found = {name: sample.figures() for name, sample in samples.items()}
    table = []
    for name, call in calls.items():
        seconds = found[name]["seconds"]
        rate = 4 * size * (count + 1) / seconds
        table.append(
            {"models": count, "variant": name}
            | found[name]
            | {
                "gb_per_s": rate / 1e9,
                "of_limit": rate / bandwidth,
                "peak_models": peak_bytes(call) / (4 * size),
                "fedsim_is_faster_by": seconds / found[OURS]["seconds"],
                "best_kernel_is_faster_by": seconds / found[BEST]["seconds"],
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 models only, nothing is written")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    bandwidth = memory_bandwidth()
    table: list[dict[str, Any]] = []
    for count in MEMBERS[:1] if options.quick else MEMBERS:
        bandwidth = max(bandwidth, memory_bandwidth())
        now = measure(count, options.repeats, bandwidth)
        show(f"{count} models of 11.2 M parameters; limit: {bandwidth / 1e9:.1f} GB/s", now, COLUMNS)
        table += now
        gc.collect()
    if not options.quick:
        save("aggregation", describe(), {"memory_gb_per_s": bandwidth / 1e9}, table, repeats=options.repeats)


if __name__ == "__main__":
    main()
