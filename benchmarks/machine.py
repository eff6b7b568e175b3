"""A description of the machine and its limits, which the other benchmarks are measured against."""

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import least, synchronise

GEMM = {"cpu": 2048, "cuda": 8192}  # 2048 does not fill a GPU
BANDWIDTH_FLOATS = {"cpu": 1 << 26, "cuda": 1 << 30}  # well beyond any cache


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return what a reader needs in order to compare figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": processors(),
        "memory_gb": round(memory / 1e9, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def gemm_limit(device: str = "cpu") -> float:
    """Return the FLOP per second of a square float32 matrix product on all cores."""
    n = GEMM[device]
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    out = torch.empty(n, n, device=device)
    return 2 * n**3 / least(lambda: torch.mm(a, b, out=out), 10, device)


def memory_bandwidth(device: str = "cpu") -> float:
    """Return the highest bytes per second of a sum (read), a copy and a triad (read and written)."""
    n = BANDWIDTH_FLOATS[device]
    a, b, c = (torch.ones(n, device=device) for _ in range(3))
    kernels: list[tuple[int, Callable[[], Any]]] = [
        (1, lambda: torch.mv(a.view(-1, 1 << 13), b[: 1 << 13])),
        (2, lambda: c.copy_(a)),
        (3, lambda: torch.add(a, b, out=c)),
    ]
    return max(passes * 4 * n / least(kernel, 5, device) for passes, kernel in kernels)


def release(device: str) -> None:
    """Release freed memory of a GPU, so that the next measurement starts clean."""
    synchronise(device)
    if device == "cuda":
        torch.cuda.empty_cache()


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
