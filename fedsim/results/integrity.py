"""Whether the records of a run are those that it wrote: checked before they are read, and before it resumes."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.config import naming
from fedsim.config.toml import short_hash
from fedsim.errors import ConfigError
from fedsim.reading import check_file
from fedsim.results.files import by_round, read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.measured import TABLES
from fedsim.results.seals import DamagedError, Seal, check_all, hash_of, place_in, read_sealed, seal_of, write_sealed

OF_MANIFEST = ("round", "files", "records", "starts")  # keys of a checkpoint's manifest
AGAIN = "remove the run's folder and run it again"


def check_run(folder: RunFolder) -> bool:
    """Check that a run's records are as they were written, as far as they are sealed.

    Returns
    -------
    is_sealed
        False if an earlier version wrote the run, so that damage cannot be noticed.

    Raises
    ------
    ConfigError
        If a file is missing or damaged; the message says what to do.
    """
    try:
        is_sealed = _is_sealed(folder)
        if not is_sealed:
            _check_unsealed(folder)
        elif folder.done.exists():
            _check_done(folder)
        else:
            _check_stopped(folder)
    except DamagedError as error:
        if error.path == folder.done:
            remedy = "remove it, and the same command completes the run again"
        elif folder.done.exists():
            remedy = AGAIN
        else:
            remedy = "'fedsim run' resumes the run from before that, or reports that it cannot"
        raise ConfigError(f"{error}; {remedy}") from error
    return is_sealed


def check_records(folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Check that the records up to a checkpoint are those that its manifest seals; more may follow.

    Raises
    ------
    DamagedError
        If a file is missing or damaged.
    """
    _check_rows(folder, manifest["records"], beginning=True)
    _check_tables(folder, _seal_lines(folder, manifest["records"]))
    starts, sealed = _env(folder)["starts"], manifest["starts"]
    if hash_of(starts[: sealed["count"]]) != sealed["sha256"]:
        raise DamagedError(folder.env, "belongs to another run")


def check_file_of_checkpoint(path: Path) -> None:
    """Check a file that is given by its path, if it is one of a run's checkpoint.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    folder = path.resolve().parent
    found = re.fullmatch(r"round-(\d{5,})", folder.name)
    if not found or not path.is_file():
        return
    manifest = folder / "manifest.json"
    checkpoints = folder.parent.parent if folder.parent.name == "kept" else folder.parent
    first = sealed_from(RunFolder(checkpoints.parent))
    if manifest.exists() or (first is not None and int(found[1]) >= first):
        files = read_sealed(manifest, "files")["files"]
        if path.resolve().name in files:
            Seal.from_json(files[path.resolve().name]).check(path)


def other_name(folder: RunFolder) -> str | None:
    """Return what a run's folder should be called by its config, if it is called by another one's; else None."""
    name = folder.path.resolve().name
    if not (re.fullmatch(r"[0-9a-f]{8}-s\d+", name) and folder.config.exists()):
        return None
    config = folder.read_config()
    expected = f"{short_hash(folder.named_by or naming.recorded_settings(config))}-s{config.seed}"
    return None if name == expected else expected


def check_name(folder: RunFolder) -> None:
    """Check that a run's folder is not that of another run, under the name of this one.

    Raises
    ------
    ConfigError
        If it is.
    """
    if name := other_name(folder):
        raise ConfigError(f"run folder {folder.path} holds the run {name}; give it that name again, or use --out")


def damaged_settings(folder: RunFolder) -> list[DamagedError]:
    """Return what is wrong with the files that are written when a run starts, except ``env.json``, which seals them.

    A run that continues a shorter one, and has not started yet, has only some of that one's.
    """
    env = _env(folder) if _is_sealed(folder) else {"starts": ()}
    starts = env["starts"]
    problems = []
    for name in starts[-1]["files"] if starts else ():
        path = place_in(folder.path, name)
        try:
            # A start that is killed leaves some files of the one before it.
            known = {start["files"].get(name) for start in starts}
            if seal_of(path).sha256 not in known:
                problems.append(DamagedError(path, "differs from what was written"))
        except OSError:
            if env.get("started"):
                problems.append(DamagedError(path, "is missing"))
    return problems


def write_done(folder: RunFolder, checkpoints: Sequence[int]) -> None:
    """Seal a run that is complete, once its records are checked.

    Raises
    ------
    ConfigError
        If a file is not as it was written.
    """
    check_run(folder)
    records = {path.name: seal_of(path).to_json() for path in row_files(folder) if path.exists()}
    settings = (folder.env, folder.config, folder.model, folder.participants, folder.partition)
    predicted = [folder.predictions] if folder.predictions.exists() else []
    files = {path.name: seal_of(path).to_json() for path in [*settings, *predicted]}
    write_sealed(folder.done, {"records": records, "files": files, "checkpoints": list(checkpoints)})


def sealed_from(folder: RunFolder) -> int | None:
    """Return the first round whose records are sealed; None if an earlier version wrote all of them."""
    try:
        with folder.seals.open("rb") as file:
            return int(json.loads(file.readline())["round"])
    except (OSError, ValueError, KeyError, TypeError):
        starts = folder.known_env().get("starts")
        return starts[0]["after_round"] + 1 if starts else None


def lost_rounds(folder: RunFolder, last: int) -> DamagedError | None:
    """Return which records of a run that an earlier version wrote, without seals, lack a round up to the last one."""
    for path in (folder.metrics, folder.communication, folder.timing):
        found = set(read_rows(path)["round"].tolist()) if path.exists() and path.stat().st_size else set()
        lost = set(range(1, last + 1)) - found
        if path == folder.communication and path.exists():
            lost &= {last} if found else set()  # some methods send nothing in some rounds, or in none
        if path == folder.timing and folder.env.exists():
            # A kill may come between a checkpoint and its timing.
            kills = len(folder.read_env().get("started", ())) - folder.done.exists()
            lost = lost if len(lost) > kills or not path.exists() else set()
        if lost:
            return DamagedError(path, f"has no rows of round {min(lost)}" if path.exists() else "is missing")
    return None


def _is_sealed(folder: RunFolder) -> bool:
    """Tell whether anything of a run is sealed, so that everything is."""
    if folder.seals.exists() or folder.manifests() or (folder.done.exists() and folder.done.stat().st_size):
        return True
    return "starts" in folder.known_env()


def _check_done(folder: RunFolder) -> None:
    done = read_sealed(folder.done, "files", "records")
    check_all({place_in(folder.path, name): Seal.from_json(seal) for name, seal in done["files"].items()})
    _check_rows(folder, done["records"])
    _check_tables(folder, _seal_lines(folder, done["records"]), is_all=True)


def _check_stopped(folder: RunFolder) -> None:
    """Check a run that is not done: up to its newest checkpoint, and up to its last round that is sealed."""
    for path in reversed(folder.manifests().values()):
        # Another process may move it meanwhile; if it is damaged, the run resumes from the one before.
        try:
            manifest = read_sealed(path, *OF_MANIFEST)
        except DamagedError:
            continue
        check_records(folder, manifest)
        break
    first = sealed_from(folder)
    if not folder.seals.exists() and first is not None and max(by_round(folder.checkpoints), default=0) >= first:
        raise DamagedError(folder.seals, "is missing")
    lines = _whole_lines(folder.seals) if folder.seals.exists() else []
    if lines:
        try:
            _check_rows(folder, lines[-1]["files"], beginning=True)
            _check_tables(folder, lines)
        except (KeyError, TypeError, AttributeError) as error:  # in rounds that no checkpoint has sealed yet
            raise DamagedError(folder.seals, "differs from what was written") from error
    # The timing of the last round is sealed with the next.
    rows = read_rows(folder.timing)
    rounds = rows["round"].tolist() if len(rows) else []
    if rounds != sorted(set(rounds)):
        raise DamagedError(folder.timing, "has a round twice, or rounds out of order")
    for problem in damaged_settings(folder):
        raise problem


def _check_unsealed(folder: RunFolder) -> None:
    """Check that a run of an earlier version has the records of all rounds and, if it is done, all its files."""
    partition = folder.partition if folder.partition.exists() else folder.partition_json
    needed = (folder.config, folder.env, partition, folder.metrics, folder.communication, folder.timing)
    for path in needed if folder.done.exists() else ():
        if not path.exists():
            raise DamagedError(path, "is missing")
    if problem := lost_rounds(folder, max(by_round(folder.checkpoints), default=0)):
        raise problem


def _check_rows(folder: RunFolder, records: Mapping[str, Any], *, beginning: bool = False) -> None:
    for path in row_files(folder):
        if path.name in records:
            try:
                Seal.from_json(records[path.name]).check(path, beginning=beginning)
            except DamagedError as error:
                where = _first_damaged_round(folder, path)
                raise DamagedError(path, f"{error.problem}{where}") from error
        elif path.exists() and not beginning:
            raise DamagedError(path, "was not written by this run")


def _check_tables(folder: RunFolder, lines: Sequence[Mapping[str, Any]], *, is_all: bool = False) -> None:
    tables = [(name, seal) for line in lines for name, seal in line["tables"].items()]
    sealed = {place_in(folder.path, name): Seal.from_json(seal) for name, seal in tables}
    check_all(sealed)
    first, last = (lines[0]["round"], lines[-1]["round"]) if lines else (1, 0)
    for name in TABLES:
        for server_round, path in folder.measured_files(name).items():
            if path not in sealed and server_round >= first and (is_all or server_round <= last):
                raise DamagedError(path, "was not written by this run")


def _seal_lines(folder: RunFolder, records: Mapping[str, Any]) -> list[Any]:
    """Return the lines of ``seals.jsonl`` that are sealed themselves."""
    return _whole_lines(folder.seals)[: records[folder.seals.name].get("rows")]


def _whole_lines(path: Path) -> list[Any]:
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n"):
                lines.append(json.loads(line))
        except ValueError as error:
            raise DamagedError(path, f"is damaged in line {len(lines) + 1}") from error
    return lines


def _first_damaged_round(folder: RunFolder, path: Path) -> str:
    """Say in which round a file begins to differ from what was sealed; nothing if that is not known."""
    try:
        seals = [(line["round"], line["files"].get(path.name)) for line in _whole_lines(folder.seals)]
        check_file(path)
        with path.open("rb") as file:
            digest, size = hashlib.sha256(), 0
            for server_round, seal in seals:
                if seal is None:
                    continue
                digest.update(file.read(seal["bytes"] - size))
                size = seal["bytes"]
                if digest.hexdigest() != seal["sha256"]:
                    return f", from round {server_round} on"
    except (OSError, DamagedError, KeyError, TypeError, AttributeError):
        return ""
    return ""


def row_files(folder: RunFolder) -> Iterator[Path]:
    """Yield the files of rows, first that which says more of the others."""
    yield from (folder.seals, folder.metrics, folder.communication, folder.faults, folder.variances, folder.timing)


def _env(folder: RunFolder) -> dict[str, Any]:
    if not folder.env.exists():
        raise DamagedError(folder.env, "is missing")
    env = folder.read_env()
    if "starts" not in env:
        raise DamagedError(folder.env, "belongs to another run")
    return env
