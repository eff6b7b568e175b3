"""The folder of a run: which files it has, and what their lines look like."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config import Config, read_toml
from fedsim.errors import ConfigError
from fedsim.reading import read_bytes
from fedsim.results.files import by_round, read_json
from fedsim.results.seals import OF_ITSELF, read_sealed, write_sealed


def metric_row(
    server_round: int, client: int | None, split: str, model: str, metric: str, value: float, n: int
) -> dict[str, Any]:
    """Return one line of ``metrics.jsonl``.

    Parameters
    ----------
    client
        Index of the client, or None for the server.
    value
        Written as null if it is not finite, as JSON has no other word for it.
    n
        Number of examples that the value is a mean over.
    """
    return {
        "round": server_round,
        "client": client,
        "split": split,
        "model": model,
        "metric": metric,
        "value": value if math.isfinite(value) else None,
        "n": int(n),
    }


class _File:
    """The path of a file, or of a folder, in a run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: "RunFolder", owner: type) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, in ``<experiment>/<hash8>-s<seed>/``."""

    path: Path

    config = _File("config.toml")  # resolved, every default written out
    env = _File("env.json")  # versions, device, start and stop
    model = _File("model.json")  # names of the layers, in order, and how many parameters train
    participants = _File("participants.json")  # of each round
    partition = _File("partition.parquet")  # one row per client: its examples, and how many it holds of each class
    partition_json = _File("partition.json")  # the same, as earlier versions wrote it
    metrics = _File("metrics.jsonl")  # one line per round, client, split, model and metric
    communication = _File("communication.jsonl")  # one line per round, client and layer: bytes up and down
    faults = _File("faults.jsonl")  # one line per client that failed in a round; absent in a run without faults
    variances = _File("variances.jsonl")  # one line per round and shared layer; earlier versions wrote none
    timing = _File("timing.jsonl")  # one line per round: wall seconds by part; equal runs differ in it alone
    seals = _File("seals.jsonl")  # one line per round: hashes of the records up to it, and of its measured tables
    checkpoints = _File("checkpoints")
    log = _File("log.txt")
    report = _File("report.html")
    predictions = _File("predictions.parquet")  # of the final models, one row per model and test example, on request
    lock = _File(".lock")  # held by the process that runs it
    done = _File("DONE")  # written last: the run is complete

    def measured(self, name: str, server_round: int) -> Path:
        """Return the file of what was measured in a round under a name: ``barriers``, ``distances`` or others."""
        return self.path / name / f"round-{server_round:05d}.parquet"

    def measured_files(self, name: str) -> dict[int, Path]:
        """Return the files of one kind of measurement by round, in their order."""
        return by_round(self.path / name, ".parquet")

    def remove_partial_files(self) -> None:
        """Remove what a kill left of files that were being written."""
        for path in self.path.rglob(".*"):
            if path.is_file() and path != self.lock:
                path.unlink()

    def read_config(self) -> Config:
        """Read the resolved config."""
        return Config.parse(read_toml(self.config), str(self.config))

    def manifests(self) -> dict[int, Path]:
        """Return what seals the checkpoints, by round and in their order; earlier versions sealed none."""
        rounds = by_round(self.checkpoints / "kept") | by_round(self.checkpoints)
        paths = {server_round: folder / "manifest.json" for server_round, folder in sorted(rounds.items())}
        return {server_round: path for server_round, path in paths.items() if path.exists()}

    def write_env(self, env: Mapping[str, Any]) -> None:
        """Write versions, device, start and stop."""
        write_sealed(self.env, env)

    def read_env(self) -> dict[str, Any]:
        """Read versions, device, start and stop.

        Raises
        ------
        ConfigError
            If the file is damaged.
        """
        try:
            env = json.loads(read_bytes(self.env))
        except (ValueError, RecursionError):
            env = None
        if isinstance(env, dict) and "starts" not in env and OF_ITSELF not in env:
            return env  # of an earlier version
        return read_sealed(self.env, "device", "starts")

    def known_env(self) -> dict[str, Any]:
        """Read versions, device, start and stop; empty if the run has not started."""
        return self.read_env() if self.env.exists() else {}

    def read_model(self) -> dict[str, Any]:
        """Read the names of the layers, and how many parameters train; empty if an earlier version wrote the folder."""
        return dict(read_json(self.model, dict)) if self.model.exists() else {}

    @property
    def named_by(self) -> dict[str, Any] | None:
        """The settings and contents that the run is named by, if it has custom parts or files; else None."""
        return self.known_env().get("named_by")

    @property
    def started(self) -> str:
        """When the run was first started, as ISO 8601; empty if that is not known, or the file is damaged."""
        try:
            started = self.known_env().get("started")
        except (ConfigError, OSError):
            return ""  # whoever reads more of the run says what is wrong
        return str(started[0]) if isinstance(started, list) and started else ""
