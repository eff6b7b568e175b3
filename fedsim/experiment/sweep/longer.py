"""Runs of more rounds, begun with the rounds of finished runs that differ from them in nothing else.

A round is a function of the seed, its number and the rounds before it, whatever is still to come. So the records of a
longer run begin with those of a shorter one, except what is measured in a last round only.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.config import Config, making, naming
from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.measuring.evaluation_cost import is_evaluated, is_fine_tuned
from fedsim.experiment.same_layers import check_layers
from fedsim.experiment.same_start import check_start
from fedsim.federation.client.state import FINE_TUNED, GLOBAL, NEIGHBOURS, PERSONALISED, TRAINED
from fedsim.federation.federation import federation_of
from fedsim.results.best_round import best_rounds, reason_to_stop, selecting, validation_means
from fedsim.results.environment import different_versions, environment
from fedsim.results.files import copy_writable, keep_rows, read_rows, write_folder
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_run, row_files
from fedsim.results.measured import TABLES
from fedsim.results.records import Records
from fedsim.strategy.forgotten import forgotten_by, kept_of_rounds
from fedsim.training.metrics import meant
from fedsim.training.schedule import depends_on_rounds

Row = Mapping[Any, Any]


def finished_rounds(folder: Path) -> set[int]:
    """Return for how many rounds the finished runs of an experiment were to run."""
    configs = (path.with_name("config.toml") for path in folder.glob("*/DONE"))
    texts = (path.read_text("utf-8", "replace") for path in configs if path.is_file())
    return {int(found[1]) for text in texts if (found := re.search(r"^rounds = (\d+)$", text, re.MULTILINE))}


def begin_from_shorter(
    config: Config, folder: RunFolder, finished: Collection[int], *, accept_versions: bool = False
) -> str | None:
    """Begin a run with the rounds of the longest finished one that differs from it only in having fewer.

    Parameters
    ----------
    folder
        Folder of the run, which does not exist yet; it appears as a whole.
    finished
        What `finished_rounds` returns of the folder in which it lies.
    accept_versions
        Whether it may continue a run of other versions of fedsim or a package.

    Returns
    -------
    note
        What was done, or why it was not; None if there is no such run.
    """
    obstacle = None
    for fewer, shorter in _shorter(config, folder, finished):
        try:
            _check_same(config, shorter, fewer, accept_versions=accept_versions)
            server_round = _begin(config, folder, shorter)
        except _ObstacleError as error:
            obstacle = obstacle or f"starts from round 1, not from the {fewer} rounds of {shorter.path}: {error}"
        else:
            return f"continues {shorter.path} after its {server_round} rounds"
    return obstacle


def shorter_run(
    config: Config, folder: RunFolder, finished: Collection[int], *, accept_versions: bool = False
) -> tuple[RunFolder, int] | None:
    """Return the finished run that `begin_from_shorter` would continue, and its rounds; nothing is written."""
    for fewer, shorter in _shorter(config, folder, finished):
        try:
            _check_same(config, shorter, fewer, accept_versions=accept_versions)
        except _ObstacleError:
            continue
        return shorter, fewer
    return None


def _shorter(config: Config, folder: RunFolder, finished: Collection[int]) -> Iterator[tuple[int, RunFolder]]:
    """Yield the finished runs that differ only in having fewer rounds, and how many, the longest first."""
    for fewer in sorted((rounds for rounds in finished if rounds < config.rounds), reverse=True):
        shorter = RunFolder(folder.path.parent / naming.run_name(config.model_copy(update={"rounds": fewer})))
        if shorter.done.exists():
            yield fewer, shorter


class _ObstacleError(Exception):
    """A reason for which a run cannot begin with the rounds of another."""


def _begin(config: Config, folder: RunFolder, shorter: RunFolder) -> int:
    """Copy what a longer run has in common with a shorter one; return the round after which it continues."""
    checkpoints = Checkpoints(shorter.checkpoints)
    last, rows = checkpoints.newest(), read_rows(shorter.metrics).to_dict("records")
    extra = _last_only(config, rows, last)
    left = [row for row in rows if not (row["round"] == last and row["model"] in extra)]
    if lost := set(_kept_rounds(config, left, last)) - set(checkpoints.rounds()):
        raise _ObstacleError(f"the models of its round {min(lost)} are not kept, as checkpoints.keep asks for")
    faults = read_rows(shorter.faults).to_dict("records")
    if extra == {FINE_TUNED} and any(row["round"] == last and row["stage"] == "evaluate" for row in faults):
        raise _ObstacleError("clients failed in its last evaluation")
    with write_folder(folder.path) as path:
        copy = RunFolder(path)
        for shared in _common(shorter):
            copy_writable(shared, path / shared.name)
        origin = {"run": shorter.path.name, "round": last}
        copy.write_env(shorter.read_env() | {"started": [], "continues": origin})
        if extra:
            _drop(copy, last, extra)
    return last


def _drop(copy: RunFolder, last: int, extra: Collection[str]) -> None:
    """Drop what was measured in the last round only because it was the last, and seal what is left."""
    keep_rows(copy.metrics, lambda row: not (row["round"] == last and row["model"] in extra))
    if PERSONALISED in extra:
        keep_rows(copy.faults, lambda row: not (row["round"] == last and row["stage"] == "evaluate"))
    if last in copy.manifests():
        records = Records(copy)
        records.seal_again(last)
        Checkpoints(copy.checkpoints).seal_again(last, records.sealed())


def _check_same(config: Config, shorter: RunFolder, rounds: int, *, accept_versions: bool) -> None:
    """Check that a shorter run is whole, and that it would have the same numbers here and now."""
    if depends_on_rounds(config.local.settings):
        raise _ObstacleError(f"local.schedule = {config.local.schedule!r} spans all rounds, and their number differs")
    method = making.strategy_class(config)
    if obstacle := forgotten_by(method) or kept_of_rounds(method):
        raise _ObstacleError(obstacle)
    checkpoints = Checkpoints(shorter.checkpoints)
    try:
        check_run(shorter)
        checkpoints.check(checkpoints.newest())
        federation = federation_of(config)
        if not shorter.model.exists():
            raise _ObstacleError("an earlier version of fedsim wrote it")
        check_layers(shorter, federation)
        if not accept_versions:
            check_start(shorter, federation)
    except ConfigError as error:
        raise _ObstacleError(str(error)) from error
    before, now = shorter.read_env(), environment(federation.device)
    if not accept_versions and (others := different_versions(before, now)):
        raise _ObstacleError(f"it was run with {', '.join(others)}; --accept-versions continues it")
    if before.get("device") != now["device"]:
        raise _ObstacleError(f"device was {before.get('device')} and is {now['device']}")
    if config.engine.cohort not in ("auto", before["cohort"]):
        raise _ObstacleError(f"its cohort was {before['cohort']} and engine.cohort is {config.engine.cohort}")
    if checkpoints.newest() < rounds and not config.stop.by:
        raise _ObstacleError("its last checkpoint is not of its last round")


def _last_only(config: Config, rows: Sequence[Row], last: int) -> set[str]:
    """Return the models that were measured in the last round of a shorter run only because it was the last."""
    extra = set() if is_evaluated(config, last) else {PERSONALISED, GLOBAL, TRAINED, NEIGHBOURS}
    left = [row for row in rows if not (row["round"] == last and row["model"] in extra)]
    metric = meant(config.stop.metric, {row["metric"] for row in rows})
    if not (is_fine_tuned(config, last) or reason_to_stop(validation_means(left, metric), config.stop, metric)):
        extra.add(FINE_TUNED)
    return extra & {row["model"] for row in rows if row["round"] == last}


def _kept_rounds(config: Config, rows: Sequence[Row], last: int) -> Iterator[int]:
    """Yield the rounds up to the last one whose models the longer run keeps."""
    if config.checkpoints.keep == "all":
        yield from range(config.checkpoint_every, last + 1, config.checkpoint_every)
    if config.keeps_best:
        yield from best_rounds(
            {metric: validation_means(rows, metric) for metric in selecting({row["metric"] for row in rows})}
        )


def _common(shorter: RunFolder) -> Iterator[Path]:
    """Yield the files and folders that a longer run shares with a shorter one."""
    files = (shorter.model, *row_files(shorter), shorter.log)
    folders = (shorter.checkpoints, *(shorter.path / name for name in TABLES))
    yield from (path for path in (*files, *folders) if path.exists())
