"""Means by round of a run that may be running: only what has been added to its records is read."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.results.folder import RunFolder


@dataclass(frozen=True)
class Measured:
    """What a curve shows.

    Parameters
    ----------
    on_server
        Whether the server measured it; else it is a mean over the clients.
    """

    model: str
    split: str
    metric: str
    on_server: bool


class Curves:
    """Means by round, as far as they are on disk."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.metrics
        self._forget()

    def _forget(self) -> None:
        self._read = 0
        self._sums: dict[Measured, dict[int, tuple[float, int]]] = {}
        self._incomplete: dict[Measured, set[int]] = {}

    def update(self) -> bool:
        """Read what has been added, and all again after a resumed run has cut its records; return if anything was."""
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._read:
                self._forget()
            file.seek(self._read)
            # The last line may be being written.
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        for line in whole.splitlines():
            self._add(json.loads(line))
        return bool(whole)

    def _add(self, row: Mapping[str, Any]) -> None:
        of = Measured(row["model"], row["split"], row["metric"], row["client"] is None)
        if row["value"] is None:
            self._incomplete.setdefault(of, set()).add(row["round"])
            return
        by_round = self._sums.setdefault(of, {})
        total, count = by_round.get(row["round"], (0.0, 0))
        by_round[row["round"]] = total + row["value"], count + 1

    def of(self, measured: Measured) -> dict[int, float]:
        """Return the means by round; NaN where a client's value is missing, and nothing if that is so in all rounds."""
        gaps = self._incomplete.get(measured, set())
        means = {at: total / count for at, (total, count) in self._sums.get(measured, {}).items() if at not in gaps}
        return dict(sorted((means | dict.fromkeys(gaps, math.nan)).items())) if means else {}
