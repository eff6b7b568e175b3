"""Runs found on disk, and read."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedsim.config import choices
from fedsim.errors import ConfigError, first_line
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_run
from fedsim.results.measured import read_measured
from fedsim.results.partition_file import read_partition
from fedsim.results.result import Result

logger = logging.getLogger(__name__)


class NotEvaluatedError(ConfigError):
    """A run without results to show yet."""


def read_result(folder: RunFolder) -> Result:
    """Read a run's records; nothing that its config names is imported or read.

    Raises
    ------
    ConfigError
        If the folder is not a whole run, a file is damaged, or nothing was evaluated in it yet.
    """
    try:
        if not check_run(folder):
            logger.info("%s is of an earlier version, which sealed no records: damage cannot be noticed", folder.path)
        _check_names(folder.named_by)
        config = choices.resolve(folder.read_config(), custom=False)
        metrics, timing = read_rows(folder.metrics), read_rows(folder.timing)
        if not folder.done.exists() and len(metrics):  # of a round without a time, some rows may be missing
            metrics = metrics[metrics["round"] <= (timing["round"].max() if len(timing) else 0)]
        if metrics.empty or "personalised" not in set(metrics["model"]):
            raise NotEvaluatedError(f"{folder.path} has no evaluated round yet; let 'fedsim run' resume it first")
        return Result(
            folder=folder,
            config=config,
            metrics=metrics,
            communication=read_rows(folder.communication),
            timing=timing,
            barriers=read_measured(folder.path / "barriers"),
            heterogeneity=read_partition(folder),
        )
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # a file may hold anything
        raise ConfigError(
            f"run folder {folder.path} is damaged ({first_line(error)}); remove it and run it again"
        ) from error


def _check_names(named_by: Any) -> None:
    if named_by is not None and not isinstance(named_by, dict):
        raise ValueError("named_by in env.json is no table")
    for catalogue in choices.CATALOGUES.values():
        if named_by and not isinstance(named_by.get(catalogue.table, {}), dict):
            raise ValueError(f"named_by.{catalogue.table} in env.json is no table")


def read_results(folders: Sequence[RunFolder]) -> list[Result]:
    """Read several runs; those without an evaluated round are left out with a warning.

    Raises
    ------
    ConfigError
        If none has one.
    """
    results: list[Result] = []
    for folder in folders:
        try:
            results.append(read_result(folder))
        except NotEvaluatedError as error:
            if len(folders) == 1:
                raise
            logger.warning("left out: %s", error)
    if not folders:
        raise ConfigError("there are no runs to read; give the folder of a run, or of an experiment")
    if not results:
        raise ConfigError(f"none of {len(folders)} runs has an evaluated round yet; let 'fedsim run' resume it first")
    return results


def find_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """Return the runs at these paths, run folders or folders of experiments, in the order in which they were started.

    Raises
    ------
    ConfigError
        If a path does not exist or holds no run.
    """
    found: list[RunFolder] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f"{path} does not exist; give run folders, or an experiment's folder such as runs/quickstart"
            )
        inside = [path] if _is_run(path) else sorted(each for each in path.glob("*") if _is_run(each))
        if not inside:
            deeper = sorted({p.parent.parent for p in path.glob("*/*/config.toml")})
            remedy = (
                f"give one in it, such as {deeper[0]}"
                if deeper
                else ("give run folders, or an experiment's folder such as runs/quickstart")
            )
            raise ConfigError(f"{path} holds no run; {remedy}")
        found += [RunFolder(run) for run in inside]
    # One folder may have been named in several ways.
    distinct = {run.path.resolve(): run for run in reversed(found)}.values()
    return sorted(distinct, key=lambda run: (run.started, run.path))


def _is_run(path: Path) -> bool:
    """Tell whether a folder is a run's, also of one that has lost its config; one that has not started has none yet."""
    folder = RunFolder(path)
    if folder.config.is_file() or folder.done.is_file():
        return True
    return folder.metrics.is_file() and not (folder.env.is_file() and not folder.started)
