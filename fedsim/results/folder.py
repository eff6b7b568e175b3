"""A run on disk: its files, each of which appears whole or not at all."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.config import Config, read_toml
from fedsim.errors import ConfigError

if TYPE_CHECKING:  # a worker that reads no table need not wait for pandas
    import pandas as pd


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a run that was killed, sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, in ``<experiment>/<hash8>-s<seed>/``."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, every default written out."""
        return self.path / "config.toml"

    @property
    def env(self) -> Path:
        """Versions, device, start and stop."""
        return self.path / "env.json"

    @property
    def participants(self) -> Path:
        """The participants of each round."""
        return self.path / "participants.json"

    @property
    def partition(self) -> Path:
        """Names of the classes, and how many examples of each class each client holds."""
        return self.path / "partition.json"

    @property
    def metrics(self) -> Path:
        """One line per round, client, split, model and metric."""
        return self.path / "metrics.jsonl"

    @property
    def communication(self) -> Path:
        """One line per round, client and layer: bytes up and down."""
        return self.path / "communication.jsonl"

    @property
    def timing(self) -> Path:
        """One line per round: wall seconds by part. Apart from the metrics, which are equal in equal runs."""
        return self.path / "timing.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.path / "log.txt"

    @property
    def report(self) -> Path:
        """The page about this run."""
        return self.path / "report.html"

    @property
    def lock(self) -> Path:
        """Held by the process that plays the run."""
        return self.path / ".lock"

    @property
    def done(self) -> Path:
        """Written last: the run is complete."""
        return self.path / "DONE"

    def measured(self, name: str, server_round: int) -> Path:
        """Return the file of what was measured in a round under a name: ``barriers``, ``distances`` or others."""
        return self.path / name / f"round-{server_round:05d}.parquet"

    def measured_files(self, name: str) -> dict[int, Path]:
        """Return the files of one kind of measurement by round, in their order."""
        files = sorted((self.path / name).glob("round-*.parquet"))
        return {int(path.stem.removeprefix("round-")): path for path in files}

    def remove_partial_files(self) -> None:
        """Remove what a kill left of files that were being written."""
        for path in self.path.rglob(".*"):
            if path.is_file() and path != self.lock:
                path.unlink()

    def read_config(self) -> Config:
        """Read the resolved config."""
        return Config.parse(read_toml(self.config), str(self.config))

    def read_env(self) -> dict[str, Any]:
        """Read versions, device, start and stop."""
        return json.loads(self.env.read_text())

    @property
    def started(self) -> str:
        """When the run was first started, as ISO 8601; empty if that is not known."""
        return self.read_env()["started"][0] if self.env.exists() else ""

    def check_whole(self) -> None:
        """Check that a run that is done has all its records.

        Raises
        ------
        ConfigError
            If one is missing.
        """
        for path in (self.config, self.env, self.partition, self.metrics, self.communication, self.timing):
            if not path.exists():
                raise ConfigError(f"run folder {self.path} is done but has no {path.name}; remove it to run it again")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as parquet, whole or not at all."""
    write_whole(path, table.to_parquet(index=False))


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file of JSON lines, all in one write."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a") as file:
        file.write(text)


def read_rows(path: Path) -> "pd.DataFrame":
    """Read a file of JSON lines; a last line that a kill cut short is left out."""
    import pandas as pd

    return pd.DataFrame(_rows(path))


def keep_rounds(path: Path, last_round: int) -> None:
    """Drop the rows of rounds after ``last_round`` from a file of JSON lines, and a last line that was cut short."""
    if path.exists():
        kept = [row for row in _rows(path) if row["round"] <= last_round]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
