"""Whether the folder of a run is whole: every checkpoint, every client's file, all records, and the settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from filelock import FileLock, Timeout

from fedsim.errors import ConfigError, message_of
from fedsim.experiment.checkpoints import UNREADABLE, Checkpoints
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_records, check_run, damaged_settings, other_name, row_files
from fedsim.results.measured import TABLES
from fedsim.results.report.comparing.units import how_many
from fedsim.results.seals import DamagedError, read_sealed


@dataclass(frozen=True)
class Verdict:
    """What was found in the folder of a run.

    Parameters
    ----------
    summary
        What was checked, in one line.
    problems
        Damage, a line each.
    notes
        What could not be checked, a line each.
    """

    folder: RunFolder
    summary: str
    problems: Sequence[str]
    notes: Sequence[str]

    @property
    def is_whole(self) -> bool:
        """Whether there is no damage."""
        return not self.problems


def verify(folder: RunFolder) -> Verdict:
    """Check all that a run has left.

    Raises
    ------
    ConfigError
        If another process is writing it.
    """
    _check_idle(folder)
    problems = list(dict.fromkeys(_problems(folder)))
    return Verdict(folder, _summary(folder), problems, [] if problems else list(_notes(folder)))


def _problems(folder: RunFolder) -> Iterator[str]:
    """Yield what is wrong with each part; a file may be named more than once."""
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        check_run(folder)
    except ConfigError as error:
        yield _without_remedy(error)
    for server_round in reversed(checkpoints.rounds()):
        try:
            if manifest := checkpoints.check(server_round):
                check_records(folder, manifest)
        except UNREADABLE as error:
            yield _without_remedy(error)
    try:
        yield from map(str, damaged_settings(folder))
        yield from _lost_checkpoints(folder, checkpoints.rounds())
        if name := other_name(folder):
            yield f"{folder.config} belongs to {name}"
    except (OSError, ValueError, KeyError) as error:
        yield _without_remedy(error)


def _lost_checkpoints(folder: RunFolder, found: Sequence[int]) -> Iterator[str]:
    """Yield the checkpoints that a run had and has no more."""
    if folder.done.exists() and folder.done.stat().st_size:
        for server_round in read_sealed(folder.done, "checkpoints")["checkpoints"]:
            if server_round not in found:
                yield f"{folder.checkpoints} has lost the checkpoint of round {server_round}"
    elif folder.seals.exists():
        every = folder.read_config().checkpoint_every
        due = int(read_rows(folder.seals)["round"].max()) // every * every
        if max(found, default=0) < due - every:  # a kill may come before that of the last round
            yield f"{folder.checkpoints} has lost the checkpoint of round {due}"


def _summary(folder: RunFolder) -> str:
    try:
        rounds = int(read_rows(folder.seals if folder.seals.exists() else folder.metrics)["round"].max())
        of = folder.read_config().rounds
    except (OSError, ValueError, KeyError):
        return "its rounds cannot be counted"
    state = "done" if folder.done.exists() else "'fedsim run' resumes it"
    kept = Checkpoints(folder.checkpoints).rounds()
    files = len(list((folder.checkpoints / "clients").glob("*")))
    tables = sum(len(folder.measured_files(name)) for name in TABLES)
    rows = sum(path.read_bytes().count(b"\n") for path in row_files(folder) if path.exists())
    return (
        f"{how_many(rounds, 'round')} of {of}, {state}; {how_many(rows, 'row')} of records, "
        f"{how_many(tables, 'table')}, {how_many(len(kept), 'checkpoint')}{_listed(kept)}, "
        f"{how_many(files, 'file')} of clients"
    )


def _notes(folder: RunFolder) -> Iterator[str]:
    if not check_run(folder):
        yield "an earlier version wrote it without seals, so that only what is missing is noticed"
        return
    if unsealed := [each for each in Checkpoints(folder.checkpoints).rounds() if each not in folder.manifests()]:
        yield f"an earlier version wrote the checkpoint{_listed(unsealed)} without seals"


def _check_idle(folder: RunFolder) -> None:
    if folder.lock.exists():
        try:
            FileLock(folder.lock, timeout=0).acquire().lock.release()
        except Timeout:
            raise ConfigError(
                f"run folder {folder.path} is in use by its run; verify it when the run has ended"
            ) from None
        except OSError:
            return  # the folder of another user, who alone writes it


def _without_remedy(error: Exception) -> str:
    cause = error if isinstance(error, DamagedError) else error.__cause__
    return str(cause) if isinstance(cause, DamagedError) else message_of(error)


def _listed(rounds: Sequence[int]) -> str:
    return f" ({', '.join(map(str, rounds))})" if rounds else ""
