"""The global random streams of torch, NumPy and Python, from which a user's own code may draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


def seed_torch(device: torch.device, seed: int) -> None:
    """Set torch's stream of a device: on the CPU that alone, otherwise those of the CPU and all devices."""
    if device.type == "cpu":
        # `torch.manual_seed` also seeds all devices that there may be, and formats a stack trace for each kind.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def seed_others(seed: int) -> None:
    """Set the streams of NumPy, which takes the lower half of 64 bits, and Python."""
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def same_draws(device: torch.device = CPU, seed: int = 0) -> Iterator[None]:
    """Let code draw the same random numbers each time, and leave all streams as they were; for one thread only.

    Parameters
    ----------
    device
        Where the code computes; torch's streams of other devices than this and the CPU are left alone or not restored.
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_torch(device, seed)
            seed_others(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def stream_states(device: torch.device = CPU) -> list[Any]:
    """Return where the streams are, for `are_equal`."""
    of_numpy = np.random.get_state(legacy=False)["state"]
    states = [torch.get_rng_state(), of_numpy["key"], of_numpy["pos"], random.getstate()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def are_equal(first: Any, second: Any) -> bool:
    """Return whether the streams were in the same place twice."""
    if isinstance(first, list):
        return len(first) == len(second) and all(map(are_equal, first, second))
    # Python's is a tuple of plain numbers.
    return bool(first == second if isinstance(first, tuple) else np.array_equal(first, second))
