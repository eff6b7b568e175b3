"""The global random streams of a process, which all of its threads share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedsim.models.draws import are_equal, same_draws, seed_others, seed_torch, stream_states


class Streams:
    """Seeds the streams for one thread at a time, and notices whether clients draw from them.

    Attributes
    ----------
    has_drawn
        Whether somebody has drawn from the streams after they were seeded, while they were watched.
    """

    def __init__(self) -> None:
        self.has_drawn = False
        self._lock = threading.Lock()
        self._watches = False
        self._left: list[Any] | None = None

    @contextmanager
    def seeded(self, device: torch.device, seed: int) -> Iterator[None]:
        """Let code draw the same numbers each time, as `same_draws`, while other threads wait that seed them."""
        with self._lock, same_draws(device, seed):
            yield

    def seed(self, device: torch.device, seed: int, *, with_others: bool) -> None:
        """Set torch's stream and, if asked for, those of NumPy and Python."""
        with self._lock:
            self._look(device)
            seed_torch(device, seed)
            if with_others:
                seed_others(seed)
            self._left = stream_states(device) if self._watches else None

    @contextmanager
    def watched(self, device: torch.device) -> Iterator[None]:
        """Notice who draws meanwhile from streams that were seeded."""
        self._watches, self._left = True, None
        try:
            yield
        finally:
            with self._lock:
                self._look(device)
                self._watches, self._left = False, None

    def _look(self, device: torch.device) -> None:
        if self._left is not None and not self.has_drawn:
            self.has_drawn = not are_equal(self._left, stream_states(device))
