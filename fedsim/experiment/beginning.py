"""How a run begins: from the start, or after the newest round whose checkpoint is whole."""

import logging
import shutil
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.config import Config, naming
from fedsim.config.choices import custom_names
from fedsim.config.content import counted_files
from fedsim.errors import ConfigError, message_of
from fedsim.experiment.checkpoints import UNREADABLE, Checkpoints
from fedsim.experiment.same_layers import check_layers
from fedsim.experiment.same_start import KEY, check_start, start_of
from fedsim.federation.client.app import cohort_size
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants
from fedsim.results.environment import different_versions, environment, now, versions
from fedsim.results.files import cut, json_text, keep_rounds, write_whole
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_name, check_records, damaged_settings, lost_rounds, row_files
from fedsim.results.measured import TABLES
from fedsim.results.partition_file import partition_bytes
from fedsim.results.seals import DamagedError, Seal

DIFFER = "their numbers differ in the last digits"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Parameters
    ----------
    done
        Round after which it resumes; 0 if it starts.
    manifest
        What its checkpoint seals; None if it starts, or an earlier version wrote the checkpoint.
    problems
        What the user should know: damage that the run does without.
    """

    done: int = 0
    manifest: Mapping[str, Any] | None = None
    problems: Sequence[str] = ()


def beginning_of(folder: RunFolder, federation: Federation, *, accept_versions: bool = False) -> Beginning:
    """Find where a run begins; nothing is changed on disk.

    Parameters
    ----------
    accept_versions
        Whether it may resume under other versions than those that it was begun with.

    Raises
    ------
    ConfigError
        If there are checkpoints and none is whole, the versions are others, the model has other layers now, or custom
        code gives other data or another initial model than when the run began.
    """
    whole: dict[Path, Seal] = {}
    begin = last_whole_round(folder, whole)
    if not begin.done:
        return begin
    if not accept_versions:
        check_versions(folder)
    damaged = damaged_settings(folder)
    if folder.config not in (each.path for each in damaged):
        check_name(folder)
    if folder.model not in (each.path for each in damaged):
        check_layers(folder, federation)
    if not accept_versions:
        check_start(folder, federation)
    notes = [f"{each}; it is written again" for each in damaged]
    lost = _lost_models(folder, begin.done, whole)
    notes += [f"{problem}; the models of round {each} are lost" for each, problem in lost]
    known = folder.known_env()
    device, cohort = environment(federation.device)["device"], federation.config.engine.cohort
    if (before := known.get("device", device)) != device:
        notes.append(f"the run resumes on {device}, and ran on {before}: {DIFFER}")
    if cohort != "auto" and (before := known.get("cohort", cohort)) != cohort:
        notes.append(f"the run resumes with engine.cohort = {cohort}, and ran with {before}: {DIFFER}")
    return replace(begin, problems=[*begin.problems, *notes])


def last_whole_round(folder: RunFolder, whole: MutableMapping[Path, Seal] | None = None) -> Beginning:
    """Find the newest round whose checkpoint is whole, and up to which the records are.

    Parameters
    ----------
    whole
        Takes the clients' files that were found whole, with what they were checked by.

    Raises
    ------
    ConfigError
        If there are checkpoints, but no such round.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    problems: list[str] = []
    for server_round in reversed(checkpoints.rounds()):
        try:
            if manifest := checkpoints.check(server_round, whole=whole):
                check_records(folder, manifest)
            elif problem := lost_rounds(folder, server_round):
                raise problem
        except UNREADABLE as error:
            problems.append(str(error) if isinstance(error, DamagedError) else message_of(error))
        else:
            return Beginning(
                server_round,
                manifest,
                [f"{problem}; the run resumes after round {server_round} instead" for problem in problems[:1]],
            )
    if problems:
        others = ", and no earlier round is intact" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{others}; remove the run's folder to start it again")
    return Beginning()


def _lost_models(folder: RunFolder, done: int, whole: MutableMapping[Path, Seal]) -> Iterator[tuple[int, str]]:
    """Yield the rounds before the one after which a run resumes whose models are kept and damaged, and how."""
    checkpoints = Checkpoints(folder.checkpoints)
    for server_round in checkpoints.rounds():
        if server_round < done:
            try:
                checkpoints.check(server_round, whole=whole)
            except UNREADABLE as error:
                yield server_round, str(error) if isinstance(error, DamagedError) else message_of(error)


def check_versions(folder: RunFolder) -> None:
    """Check that a run resumes under the versions with which it was last started.

    Raises
    ------
    ConfigError
        If a version of which numbers depend is another one.
    """
    if others := different_versions(folder.known_env(), versions()):
        raise ConfigError(
            f"run folder {folder.path} was written with {', '.join(others)}, and resuming it now would mix the "
            "numbers of both; resume it with --accept-versions, or run it again into another folder with --out"
        )


def open_folder(config: Config, folder: RunFolder, federation: Federation, begin: Beginning) -> None:
    """Cut the folder back to where the run begins, and write what is known at the start."""
    for problem in begin.problems:
        logger.warning(problem)
    folder.remove_partial_files()
    if begin.done:
        _cut_back(folder, begin)
    else:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        for path in row_files(folder):
            path.unlink(missing_ok=True)
    for name in TABLES:
        for server_round, path in folder.measured_files(name).items():
            if server_round > begin.done:
                path.unlink()
    trained = [participants(config, each) for each in range(1, config.rounds + 1)]
    contents = {
        folder.model: json_text(asdict(federation.summary)).encode(),
        folder.participants: json_text(trained).encode(),
        folder.partition: partition_bytes(federation.data.heterogeneity()),
        folder.config: config.to_toml().encode(),  # last, as a folder that has it is a run
    }
    if folder.partition_json.exists():  # of an earlier version, which nothing seals any more once env.json is new
        write_whole(folder.partition, contents[folder.partition])
    # Before the others, so that it seals what a kill leaves of the files.
    folder.write_env(_about(config, folder, federation, begin.done, contents))
    for path, content in contents.items():
        write_whole(path, content)
    folder.partition_json.unlink(missing_ok=True)


def _cut_back(folder: RunFolder, begin: Beginning) -> None:
    """Drop the rows of later rounds."""
    if begin.manifest is None:
        logger.info("an earlier version wrote round %d, in which damage cannot be noticed", begin.done)
        for path in row_files(folder):
            keep_rounds(path, begin.done)
        return
    sealed = begin.manifest["records"]
    for path in row_files(folder):
        if path.name in sealed:
            # The timing of a round is written after its checkpoint.
            cut(path, sealed[path.name]["bytes"], begin.done if path == folder.timing else None)
        elif path == folder.timing:
            keep_rounds(path, begin.done)
        else:
            path.unlink(missing_ok=True)


def _about(
    config: Config, folder: RunFolder, federation: Federation, done: int, contents: Mapping[Path, bytes]
) -> dict[str, Any]:
    """Return what ``env.json`` says of a run that begins now."""
    known = folder.known_env() if done else {}
    # What was chosen by measuring stays, so that a resumed run has the numbers of one that never stopped.
    chosen = known.get("cohort") if config.engine.cohort == "auto" else None
    about = environment(federation.device) | {"cohort": chosen or cohort_size(federation)}
    about[KEY] = known.get(KEY) or start_of(federation)
    about |= {key: known[key] for key in ("continues", "unsealed") if key in known}
    if known and "starts" not in known:  # an earlier version ran the rounds so far, and did not record its starts
        about["unsealed"] = {key: known[key] for key in ("fedsim", "python", "packages", "device") if key in known}
    files = counted_files(config)
    if files or custom_names(config):
        about |= {"files": [each.to_json() for each in files], "named_by": naming.changed_settings(config)}
    time, written = now(), {path.name: Seal.of(content).sha256 for path, content in contents.items()}
    start = {"time": time, "after_round": done, **versions(), "device": about["device"], "files": written}
    started = known.get("started", ()) if done else _first_start(folder)
    return about | {"started": [*started, time], "starts": [*known.get("starts", ()), start]}


def _first_start(folder: RunFolder) -> list[str]:
    """Return when a run was first started that a kill stopped before its first checkpoint: trackers know it by that."""
    if not folder.started or different_versions(folder.known_env(), versions()):
        return []
    return [folder.started]
