"""Wall times of alternating variants, so that other load on the machine affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.child import own_mark
from benchmarks.processes import Others

QUIET = 0.1  # largest share of the machine that others may take during a sample that counts


@dataclass
class Samples:
    """The wall times of one variant.

    Parameters
    ----------
    seconds, others
        Wall time of each call, and the share of the machine that other processes took meanwhile.
    """

    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def quiet(self) -> list[float]:
        """The calls that other processes hardly disturbed, or all calls if there is none."""
        calm = [s for s, share in zip(self.seconds, self.others, strict=True) if share <= QUIET]
        return calm or self.seconds

    def figures(self) -> dict[str, float]:
        """Return the shortest and the median of the quiet calls, and the share that others took during the shortest."""
        least_at = self.seconds.index(min(self.quiet))
        return {
            "seconds": self.seconds[least_at],
            "median_seconds": statistics.median(self.quiet),
            "others_took": self.others[least_at],
        }


def synchronise(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], device: str = "cpu") -> float:
    """Return the wall time of one call in seconds."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def least(call: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """Return the shortest wall time of several calls in seconds."""
    return min(seconds_of(call, device) for _ in range(repeats))


def take_turns(
    variants: Mapping[str, Callable[[], float]],
    repeats: int,
    between: Callable[[], Any] = lambda: None,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, Samples]:
    """Run every variant once as a warm-up, then all in turn, ``repeats`` times.

    Parameters
    ----------
    variants
        Calls that return their own seconds.
    between
        Function to call before each turn.
    failed
        Function to call with a variant that raises, which is then left out.
    """
    samples = {name: Samples() for name in variants}
    for repeat in range(repeats + 1):
        between()
        for name in list(samples):
            others = Others(own_mark())
            try:
                seconds = variants[name]()
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del samples[name]
                continue
            if repeat:
                samples[name].seconds.append(seconds)
                samples[name].others.append(others.share())
    return samples
