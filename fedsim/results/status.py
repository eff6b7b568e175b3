"""How far a run is, read from its folder without disturbing the process that runs it."""

import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsim.config.choices import CATALOGUES
from fedsim.config.toml import flat
from fedsim.errors import ConfigError
from fedsim.results.folder import RunFolder
from fedsim.training.metrics import LOSS, MAINS, mean_of_known

State = Literal["done", "running", "stopped", "failed", "damaged"]
TAIL = 2**16  # bytes that are read of the end of a file at first
RECENT = 20  # rounds whose seconds tell how long the others will take
BEGINNING = re.compile(r"^\d\S+ \S+ INFO rounds \d+ to \d+", re.MULTILINE)
FAILED = re.compile(r"^\d\S+ \S+ INFO the run failed(?:: (?P<reason>.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Parameters
    ----------
    run
        Path of its folder.
    strategy, seed, rounds
        As its settings say; empty and None if they cannot be read.
    state
        ``stopped`` is a run that no process runs and that the same command resumes.
    round
        The last one that is complete.
    seconds_left
        Of a running one: seconds until its last round, by its last rounds.
    metric, value, value_round
        The newest mean over the clients of their personalised models on their test data, and its round, a complete one.
    missing
        Number of clients without a value that the mean lacks.
    reason
        Why it failed, or what cannot be read.
    started
        When it was first started, as ISO 8601.
    settings
        Those that differ from their defaults, with dotted keys, and all options of what is chosen by name, whose
        defaults only its code knows: nothing that a config names is imported.
    """

    run: str
    strategy: str = ""
    seed: int | None = None
    state: State = "stopped"
    round: int = 0
    rounds: int | None = None
    seconds_left: float | None = None
    metric: str | None = None
    value: float | None = None
    value_round: int | None = None
    missing: int = 0
    reason: str | None = None
    started: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def status_of(folder: RunFolder) -> Status:
    """Return how far a run is; one whose files cannot be read is ``damaged``."""
    try:
        return _read(folder)
    except (ConfigError, OSError, ValueError, KeyError) as error:
        return Status(str(folder.path), state="damaged", reason=" ".join(str(error).split()))


def is_running(folder: RunFolder) -> bool:
    """Tell whether a process holds the lock of a run; one that starts just now waits until this has looked."""
    try:
        lock = os.open(folder.lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(lock)  # which releases it
    return False


def run_folders(paths: list[Path]) -> list[RunFolder]:
    """Return the runs in folders at any depth: of runs, of experiments, of their tuning, or of all experiments.

    Raises
    ------
    ConfigError
        If a folder does not exist or holds no run.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(
                f"{path} is no folder; give run folders, or an experiment's folder such as runs/quickstart"
            )
        runs = list(_runs_below(path, 3))
        if not runs:
            raise ConfigError(
                f"{path} holds no run; give run folders, or an experiment's folder such as runs/quickstart"
            )
        found |= {run.resolve(): RunFolder(run) for run in runs}
    return sorted(found.values(), key=lambda folder: (folder.started, folder.path))


def _runs_below(path: Path, depth: int) -> Iterator[Path]:
    """Yield the runs in a folder, without what is hidden: copies that are not whole yet, or that a kill left."""
    if (path / "config.toml").is_file() or (path / "DONE").is_file():
        yield path
    elif depth:
        for each in path.glob("[!.]*"):
            yield from _runs_below(each, depth - 1)


def _read(folder: RunFolder) -> Status:
    config = folder.read_config()
    times = list(_last_rows(folder.timing, RECENT))
    done = int(times[-1]["round"]) if times else 0
    state, reason = _state(folder)
    seconds = [sum(value for part, value in row.items() if part != "round") for row in times]
    metric, value, at, missing = _last_value(folder, done)
    return Status(
        run=str(folder.path),
        strategy=CATALOGUES["strategies"].name_of(config.strategy),
        seed=config.seed,
        state=state,
        round=done,
        rounds=config.rounds,
        seconds_left=sum(seconds) / len(seconds) * (config.rounds - done) if state == "running" and seconds else None,
        metric=metric,
        value=value,
        value_round=at,
        missing=missing,
        reason=reason,
        started=folder.started or None,
        settings=flat(config.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})),
    )


def _state(folder: RunFolder) -> tuple[State, str | None]:
    if folder.done.exists():
        return "done", None
    if is_running(folder):
        return "running", None
    log = _tail(folder.log, TAIL).decode(errors="replace") if folder.log.exists() else ""
    beginnings = [found.end() for found in BEGINNING.finditer(log)]
    if failure := FAILED.search(log, beginnings[-1] if beginnings else 0):
        lines = [line for line in log[failure.end() :].splitlines() if line.strip()]
        return "failed", failure["reason"] or (lines[-1].strip() if lines else None)
    return "stopped", None


def _last_value(folder: RunFolder, done: int) -> tuple[str | None, float | None, int | None, int]:
    """Return the main metric, its mean over the clients in the newest complete round that has one, and this round.

    The last number is how many clients the mean lacks.
    """
    size = TAIL
    whole = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    while whole:
        rows = list(_rows(_tail(folder.metrics, size), is_cut=size < whole))
        own = [
            row
            for row in rows
            if (row["model"], row["split"]) == ("personalised", "test")
            and row["metric"] in MAINS
            and row["client"] is not None
            and row["round"] <= done
        ]
        # The first round of the tail may lack its beginning.
        own = [row for row in own if size >= whole or row["round"] != rows[0]["round"]]
        if own or size >= whole:
            return _mean_of(own)
        size *= 4
    return None, None, None, 0


def _mean_of(rows: list[Mapping[str, Any]]) -> tuple[str | None, float | None, int | None, int]:
    if not rows:
        return None, None, None, 0
    last = rows[-1]["round"]
    newest = [row for row in rows if row["round"] == last]
    metric = next((row["metric"] for row in newest if row["metric"] != LOSS), LOSS)
    mean, missing = mean_of_known([row["value"] for row in newest if row["metric"] == metric])
    return metric, None if math.isnan(mean) else mean, last, missing


def _last_rows(path: Path, count: int) -> list[Mapping[str, Any]]:
    """Return the last complete lines of a file of JSON lines."""
    if not path.exists():
        return []
    return list(_rows(_tail(path, TAIL), is_cut=path.stat().st_size > TAIL))[-count:]


def _rows(content: bytes, *, is_cut: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the complete lines: the last one may be being written, and the first one be cut."""
    lines = content.split(b"\n")[1 if is_cut else 0 : -1]
    yield from map(json.loads, lines)


def _tail(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read()
