"""Rounds of a run, run again in a temporary folder, and the first difference in their bytes."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fedsim.config import Config, choices
from fedsim.errors import ConfigError
from fedsim.experiment.beginning import last_whole_round
from fedsim.experiment.checkpoints import CLIENTS, PROGRESS, Checkpoints
from fedsim.experiment.client_files import ClientFiles
from fedsim.experiment.run import run
from fedsim.federation.federation import choose_device
from fedsim.results.environment import different_versions, versions
from fedsim.results.files import copy_writable, read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.measured import TABLES
from fedsim.strategy.client_rounds import decoded

NOT_COPIED = shutil.ignore_patterns("DONE", ".lock", "report.html", "*.pdf", "*.png")


@dataclass(frozen=True)
class Replay:
    """The outcome of rounds that were run again.

    Parameters
    ----------
    first, last
        The rounds, both included.
    has_checkpoint
        Whether the run has a checkpoint of the last of them, which was compared too.
    difference
        What differs first; None if nothing does.
    notes
        Why the bytes may differ although nothing is wrong.
    """

    first: int
    last: int
    has_checkpoint: bool
    difference: str | None
    notes: Sequence[str]


def replay(folder: RunFolder, rounds: int) -> Replay:
    """Run rounds again, from the newest checkpoint with that many rounds after it, else from the start.

    Parameters
    ----------
    rounds
        How many rounds.

    Raises
    ------
    ConfigError
        If the run has fewer rounds, or its data or code are not there.
    RunError
        If a round fails.
    """
    newest = last_whole_round(folder).done or int(read_rows(folder.seals)["round"].max())
    if not 1 <= rounds <= newest:
        raise ConfigError(f"--replay {rounds} must be from 1 to {newest}, the rounds that {folder.path} has")
    done = max((each for each in Checkpoints(folder.checkpoints).rounds() if each <= newest - rounds), default=0)
    with tempfile.TemporaryDirectory(prefix="fedsim-replay-") as path:
        again = RunFolder(Path(path) / folder.path.resolve().name)
        if done:
            copy_writable(folder.path, again.path, ignore=NOT_COPIED)
            for later in [each for each in Checkpoints(again.checkpoints).rounds() if each > done]:
                Checkpoints(again.checkpoints).remove(later)
        config = _config(folder)
        run(config, again, lambda summary: None, accept_versions=True, until=done + rounds)
        last = done + rounds
        has_checkpoint = all(last in Checkpoints(each.checkpoints).rounds() for each in (folder, again))
        found = [*_records(folder, again, range(done + 1, last + 1))]
        if has_checkpoint:
            found += _checkpoint(folder, again, last)
    difference = next((each for each in found if each), None)
    return Replay(done + 1, last, has_checkpoint, difference, list(_notes(folder, config)))


def _config(folder: RunFolder) -> Config:
    """Return the run's config, with clients in this process and in cohorts as they were then."""
    config = choices.resolve(folder.read_config())
    settings = {"name": "local", "address": None, "cohort": folder.read_env().get("cohort", config.engine.cohort)}
    return config.model_copy(update={"engine": config.engine.model_copy(update=settings)})


def _notes(folder: RunFolder, config: Config) -> Iterator[str]:
    env = folder.read_env()
    if others := different_versions(env, versions()):
        yield f"it was run with {', '.join(others)}, so that its numbers may differ"
    if choose_device(config.device).type != "cpu" or env.get("device") != "cpu":
        yield "only on CPUs are the bytes always the same"


def _records(folder: RunFolder, again: RunFolder, rounds: range) -> Iterator[str | None]:
    """Yield what differs first, or nothing, for each file of each round, in the order in which a run writes them."""
    for server_round in rounds:
        for path in (folder.communication, folder.metrics, folder.faults):
            yield _first_row(path, again.path / path.name, server_round)
        if _lines(folder.variances, server_round):  # earlier versions wrote none
            yield _first_row(folder.variances, again.variances, server_round)
        for name in TABLES:
            mine, other = folder.measured(name, server_round), again.measured(name, server_round)
            if mine.exists() or other.exists():
                yield _same_bytes(mine, other, server_round)


def _checkpoint(folder: RunFolder, again: RunFolder, server_round: int) -> Iterator[str | None]:
    others = dict(Checkpoints(again.checkpoints).files(server_round))
    for name, path in Checkpoints(folder.checkpoints).files(server_round):
        yield _same_bytes(path, others.get(name, again.path / name), server_round)


def _same_bytes(mine: Path, other: Path, server_round: int) -> str | None:
    where = f"round {server_round}, {mine.parent.name}/{mine.name}"
    if not other.exists():
        return f"{where}: was written, and is not now"
    if not mine.exists():
        return f"{where}: was not written, and is now"
    same = mine.read_bytes() == other.read_bytes() or _has_same_rounds(mine, other)
    return None if same else f"{where}: has other bytes"


def _has_same_rounds(mine: Path, other: Path) -> bool:
    """Tell whether two files have the same rounds of clients, which earlier versions listed for all of them."""
    if mine.name == CLIENTS:
        files = [vars(ClientFiles.read(path)) for path in (mine, other)]
        return all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
    if mine.name != PROGRESS:
        return False
    one, two = (_by_client(load_file(path)) for path in (mine, other))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _by_client(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    clients, rounds = decoded("last_round", held)
    return held | {"clients": clients, "last_round": rounds}


def _first_row(mine: Path, other: Path, server_round: int) -> str | None:
    for before, now in zip_longest(_lines(mine, server_round), _lines(other, server_round)):
        if before != now:
            return f"round {server_round}, {mine.name}{_described(before, now)}"
    return None


def _described(before: str | None, now: str | None) -> str:
    """Say what of a row differs: its client, what was measured, and both values."""
    if before is None or now is None:
        return ": has more rows now" if before is None else ": has fewer rows now"
    was, is_ = json.loads(before), json.loads(now)
    changed = [key for key in was if was[key] != is_.get(key)] or sorted(is_.keys() - was.keys())
    about = [str(was[key]) for key in ("model", "split", "metric", "set", "layer") if key in was]
    client = "the server" if was.get("client") is None else f"client {was['client']}"
    values = ", ".join(f"{key} was {was.get(key)} and is {is_.get(key)}" for key in changed)
    return f", {client}, {' '.join(about)}: {values}"


def _lines(path: Path, server_round: int) -> list[str]:
    beginning = f'{{"round": {server_round},'
    if not path.exists():
        return []
    with path.open() as file:
        return [line for line in file if line.startswith(beginning)]
