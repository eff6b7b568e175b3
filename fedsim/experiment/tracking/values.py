"""The values of a round that trackers are sent, under names that follow from the fields of the records."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE, FACTORS
from fedsim.results.folder import RunFolder
from fedsim.results.measured import UNMATCHED

Values = dict[str, float]
LONGEST = 200  # letters of a name, of which MLflow takes 250
# Those against the ends of the path are 0 by definition where all of the average has been taken.
BARRIERS = ("loss_mean_ends", "loss_own_base", "error_mean_ends", "error_own_base")


class GrowingRecords:
    """The values of a run's rounds, read from its records as these grow."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._files = [_Growing(path) for path in (folder.metrics, folder.communication, folder.faults, folder.timing)]

    def new(self) -> dict[int, Values]:
        """Return the values of the rounds that were recorded since the last call, in their order."""
        found: dict[int, Values] = {}
        for read, file in zip((_metrics, _communication, _faults, _timing), self._files, strict=True):
            by_round: dict[int, list[dict[str, Any]]] = {}
            for row in file.new():
                by_round.setdefault(row["round"], []).append(row)
            for server_round, rows in by_round.items():
                found.setdefault(server_round, {}).update(read(rows))
        measured = self._folder.measured_files("barriers")
        for server_round in found.keys() & measured.keys():
            found[server_round].update(_barriers(pd.read_parquet(measured[server_round])))
        return {server_round: found[server_round] for server_round in sorted(found)}


def name_from(*parts: object) -> str:
    """Return a name that every tracker takes: letters, digits and ``_ . : -`` in each part.

    Others, which names of layers and groups may have, are replaced, and a hash of the part keeps names apart.
    """
    return "/".join(map(_part, map(str, parts)))


def _part(text: str) -> str:
    clean = re.sub(r"[^\w.:\-]+", "_", text, flags=re.ASCII)[:LONGEST]
    if clean == text and clean.strip("."):
        return clean
    return f"{clean.strip('._') or 'x'}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:4]}"


def _metrics(rows: Iterable[Mapping[str, Any]]) -> Values:
    found: Values = {}
    clients: dict[str, list[float | None]] = {}
    for row in rows:
        name = name_from(row["model"], row["split"], row["metric"])
        if row["client"] is not None:
            clients.setdefault(name, []).append(row["value"])
        elif row["value"] is not None:
            found[f"{name}/server"] = row["value"]
    for name, values in clients.items():
        known = [value for value in values if value is not None]
        if len(known) < len(values):  # as in the figures: a mean over the others would look better than it is
            found[f"{name}/missing"] = len(values) - len(known)
        else:
            found |= {f"{name}/mean": math.fsum(known) / len(known)}
        if known:
            found |= {f"{name}/min": min(known), f"{name}/max": max(known)}
    return found


def _communication(rows: Iterable[Mapping[str, Any]]) -> Values:
    found: Values = {}
    for row in rows:
        for direction in ("up", "down"):
            name = name_from("communication", row["set"], direction)
            found[name] = found.get(name, 0) + row[direction]
    return found


def _faults(rows: Iterable[Mapping[str, Any]]) -> Values:
    found: Values = {}
    for row in rows:
        name = name_from("faults", row["stage"])
        found[name] = found.get(name, 0) + 1
    return found


def _timing(rows: Iterable[Mapping[str, Any]]) -> Values:
    return {name_from("seconds", part): value for row in rows for part, value in row.items() if part != "round"}


def _barriers(table: pd.DataFrame) -> Values:
    """Return the mean barriers of models with the average's layers, by data, group and reference."""
    rows = table[(table["other"] == AVERAGE) & (table["t"] == 1)]
    columns = [column for column in BARRIERS if column in rows]
    by = [column for column in ("data", "matching", "path", "group") if column in rows]
    found: Values = {}
    for key, of_group in rows.groupby(by):
        parts = [part for part in key if part not in (UNMATCHED, FACTORS)]
        for column in columns:
            if math.isfinite(value := float(of_group[column].mean(skipna=False))):
                found[name_from("barriers", *parts, column, "mean")] = value
    return found


class _Growing:
    """A file of JSON lines, to which others append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that are complete and were not yielded before."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    yield json.loads(line)
