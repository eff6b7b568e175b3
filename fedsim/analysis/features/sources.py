"""Weights of models that are mixes of two: computed when needed, and kept while they fit into memory."""

import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from fedsim.analysis.mixing.mixes import Source
from fedsim.models.params import Params, moves


class Sources:
    """Entries of states and of mixes of two, for several threads.

    Parameters
    ----------
    states
        State dicts; sources are indices into them, -1 the last.
    kept_bytes
        Bytes of computed entries to keep.
    """

    def __init__(self, states: Sequence[Params], kept_bytes: int) -> None:
        self._states = states
        self._kept: dict[Hashable, Tensor] = {}
        self._free = kept_bytes
        self._lock = threading.Lock()

    def entry(self, key: str, source: Source) -> Tensor:
        """Return an entry of a model."""
        if isinstance(source, int):
            return self._states[source][key]
        start, end, t = source
        value = self._states[start][key]
        if not moves(value):
            return value  # an integer of a mix is the base's
        # Unlike (1 - t) * start + t * end, it is exact where both are alike.
        return self._keep((key, source), lambda: _between(value, self._states[end][key], t))

    def difference(self, key: str, base: int, other: int) -> Tensor:
        """Return an entry of ``base`` minus that of ``other``."""
        return self._keep((key, base, other), lambda: self._states[base][key] - self._states[other][key])

    def params(self, source: Source) -> Params:
        """Return all entries of a model."""
        return {key: self.entry(key, source) for key in self._states[0]}

    def _keep(self, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        value = compute()
        with self._lock:
            if name not in self._kept and value.nbytes <= self._free:
                self._free -= value.nbytes
                self._kept[name] = value
        return value


def _between(one: Tensor, other: Tensor, t: float) -> Tensor:
    return torch.where(one == other, one, torch.lerp(one, other, t))  # infinities of masks too
