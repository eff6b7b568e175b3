"""``fedsim path``: a walk from one checkpoint to another, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fedsim.analysis import barriers, layer_path
from fedsim.config import Config
from fedsim.config.toml import write_toml
from fedsim.errors import ConfigError
from fedsim.experiment.saved_models.comparison import SETTABLE, models_of, names_of, sample_of
from fedsim.federation.federation import federation_of
from fedsim.results.files import write_whole
from fedsim.results.measured import with_error_unit
from fedsim.results.report.drawing.checkpoints import short_names
from fedsim.results.report.drawing.walk import LAYER_WISE, LINEAR
from fedsim.results.report.pages.walk_page import write_walk_page

TS = np.linspace(0, 1, 11).tolist()


@dataclass(frozen=True)
class Walk:
    """What was measured between two checkpoints.

    Parameters
    ----------
    names
        Names of the start and the end.
    rows
        A row per point of each ``curve``, ``layer-wise`` and ``linear``: the columns of `fedsim.analysis.layer_path`,
        with its ticks as ``steps``, of which ``linear`` has none, and the ``share`` of the distance that is walked.
    config
        The settings of model and data.
    """

    names: tuple[str, str]
    rows: pd.DataFrame
    config: Config


def walk_between(
    paths: tuple[Path, Path],
    config: Config,
    *,
    part: Literal["test", "train"] = "test",
    examples: int | None = None,
    order: Sequence[str] | None = None,
    **options: Any,
) -> Walk:
    """Walk from one checkpoint to another of the same model, training on the data set's training examples.

    Parameters
    ----------
    paths
        Files as `fedsim.models.saved.read_checkpoint` reads them: start and end.
    config, part, examples
        As in `fedsim.experiment.saved_models.comparison.compare_checkpoints`.
    order, options
        As in `fedsim.analysis.layer_path`.

    Raises
    ------
    ConfigError
        If a file cannot be read or does not fit the model, the data cannot be read, or an argument is wrong.
    """
    federation = federation_of(config, fit="all")
    models = models_of(paths, federation)
    dataset = federation.data.dataset
    data, train = (
        replace(sample_of(dataset, each, count, config.seed), criterion=federation.criterion)
        for each, count in ((part, examples), ("train", len(dataset.trainable)))
    )
    names = models.layers.names
    if order is not None and sorted(order) != sorted(names):
        typed = " ".join(f"--layer {name}" for name in order)
        raise ConfigError(f"{typed}: give each layer once: {', '.join(names)}")
    try:
        walked = layer_path(models, data, train=train, order=order, **options)
    except ValueError as error:
        raise ConfigError(f"path: {error}") from error
    whole = walked["distance"].iloc[0]
    if whole == 0:
        raise ConfigError(f"{paths[0]} and {paths[1]} hold equal models; give two that differ")
    line = barriers(models, data, groups="full", against=[(0, 1)], ts=TS)
    straight = line[["n", "loss", "error"]].assign(distance=(1 - line["t"]) * whole, curve=LINEAR)
    walked = walked.rename(columns={"tick": "steps"}).assign(curve=LAYER_WISE)
    rows = pd.concat([walked, straight], ignore_index=True)
    rows = rows.assign(share=1 - rows["distance"] / whole, steps=rows["steps"].astype("Int64"))
    rows = rows[["curve", "steps", "layer", "arrived", "distance", "share", "n", "loss", "error"]]
    rows["arrived"] = rows["arrived"].astype("Int64")
    start, end = short_names(names_of(paths))
    return Walk((start, end), with_error_unit(rows, squared=federation.task.name == "regression"), config)


def write_walk(walk: Walk, folder: Path, command: str = "") -> Path:
    """Write the page, its figures as PDF and PNG, and the table as CSV; return the page's path.

    Parameters
    ----------
    command
        The command that measured this, if there was one.
    """
    config = walk.config
    page = write_walk_page(
        folder,
        walk.names,
        walk.rows,
        subtitle=f"{config.model.name} on {config.data.name}, {int(walk.rows['n'].max()):,} examples",
        settings=write_toml(config.model_dump(mode="json", include=set(SETTABLE))),
        command=command,
    )
    write_whole(folder / "path.csv", walk.rows.to_csv(index=False, lineterminator="\n"))
    return page
