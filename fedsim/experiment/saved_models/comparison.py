"""``fedsim barriers``: the layer-wise barriers between checkpoints from anywhere, without a federated run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import torch
from torch import nn

from fedsim.analysis import measure, peaks
from fedsim.analysis.data import Data
from fedsim.analysis.matching import match
from fedsim.analysis.mixing.groups import groups_of_texts
from fedsim.analysis.mixing.names import AVERAGE, FACTORS, Normalisation, PathName
from fedsim.analysis.models import Models
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import BY_FACTORS, MEASURES, OF_CHECKPOINTS
from fedsim.config import Config, choices
from fedsim.config.changes import with_changes
from fedsim.config.expectation import MatchedBy
from fedsim.config.toml import write_toml
from fedsim.data.dataset import Dataset, stratified
from fedsim.errors import ConfigError
from fedsim.federation.engines.grid import processors
from fedsim.federation.federation import Federation, federation_of
from fedsim.models.frozen import adopt_frozen_
from fedsim.models.params import Params
from fedsim.models.saved import read_checkpoint
from fedsim.results.files import write_parquet
from fedsim.results.integrity import check_file_of_checkpoint
from fedsim.results.measured import two_precisions, with_error_unit
from fedsim.results.report.comparing.units import how_many
from fedsim.results.report.drawing.checkpoints import common_start, reference_of, short_names
from fedsim.results.report.pages.checkpoint_page import write_checkpoints
from fedsim.seeds import rng
from fedsim.training.settings import Precision

EXAMPLES, BANDS = 1000, 0.95
SETTABLE = ("model", "data", "device", "seed")


@dataclass(frozen=True)
class ComparedCheckpoints:
    """Measurements between checkpoints.

    Parameters
    ----------
    names
        Names of the checkpoints, by index.
    barriers, peaks, distances
        The tables of `fedsim.analysis.barriers`, `fedsim.analysis.peaks` and `fedsim.analysis.distances`, with columns
        ``base_name`` and ``other_name``.
    others
        The tables of the other measures, by name, and ``matching``: the units that moved.
    config
        The settings of model and data.
    """

    names: tuple[str, ...]
    barriers: pd.DataFrame
    peaks: pd.DataFrame
    distances: pd.DataFrame
    others: dict[str, pd.DataFrame]
    config: Config

    @property
    def shown(self) -> Self:
        """The same with names that fit tables and legends."""
        names = tuple(short_names(self.names))
        return replace(self, names=names, others={key: _with_names(table, names) for key, table in self.others.items()})


def comparison_config(model: str, data: str, changes: Mapping[tuple[str, ...], Any]) -> Config:
    """Return the resolved settings of a comparison; ``changes`` may set those of model, data, device and seed.

    Raises
    ------
    ConfigError
        If a name or an option is unknown, or a setting has no effect here.
    """
    if useless := [path for path in changes if path[0] not in SETTABLE]:
        raise ConfigError(
            f"--set {'.'.join(useless[0])} has no effect without a run; set {', '.join(SETTABLE)}, for instance "
            "--set model.norm=none"
        )
    base = {"rounds": 1, "clients": 1, "partition": {"scheme": "iid"}, "model": {"name": model}, "data": {"name": data}}
    return choices.resolve(Config.parse(with_changes(base, changes, Config), "--set"))


def compare_checkpoints(
    paths: Sequence[Path],
    config: Config,
    *,
    groups: Sequence[str] = ("full", "layers"),
    against: Literal["average", "pairs"] = "average",
    ts: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    examples: int | None = None,
    part: Literal["test", "train"] = "test",
    measures: Sequence[str] = (),
    matching: MatchedBy = "none",
    normalisation: Normalisation = "interpolate",
    tolerance: float | None = None,
    precision: Precision = "float32",
    path: PathName = "factors",
) -> ComparedCheckpoints:
    """Read checkpoints of one model and measure barriers and distances between them.

    Parameters
    ----------
    paths
        Files as `fedsim.models.saved.read_checkpoint` reads them, at least two.
    config
        Config, of which model, data, seed and device are used.
    groups
        Kinds of groups, and expressions of the layer language, each of which is a group.
    against, ts
        As in `fedsim.analysis.barriers`.
    weights, normalisation
        As in `fedsim.analysis.models.Models`.
    examples
        Number of examples, stratified by class, the same for a seed; by default 1,000, or all if there are fewer.
    part
        The part of the data that they are from.
    measures
        What to measure besides barriers and distances: names of `fedsim.analysis.suite.OF_CHECKPOINTS`.
    matching
        How the units of all checkpoints are aligned to the first one before anything is measured.
    tolerance, precision
        As in `fedsim.analysis.data.Data`.
    path
        How models with adapters of LoRA are mixed, as in `fedsim.analysis.barriers`.

    Raises
    ------
    ConfigError
        If a file cannot be read or does not fit the model, the data cannot be read, or an argument is wrong.
    """
    _check(paths, weights, measures, tolerance)
    if precision != "float32" and tolerance is None:
        raise ConfigError(f"--precision {precision} needs a tolerance; add --tolerance 0.01")
    if path != FACTORS and (mixing := [name for name in measures if name in BY_FACTORS]):
        raise ConfigError(
            f"--path {path}: {mixing[0]} mixes factor by factor; leave out --path or --measure {mixing[0]}"
        )
    federation = federation_of(config, fit="all")
    models = models_of(paths, federation, weights, normalisation)
    sample = sample_of(federation.data.dataset, part, examples, config.seed)
    data = replace(sample, criterion=federation.criterion, tolerance=tolerance, precision=precision)
    bases = [AVERAGE, *range(len(models))]
    settings = Settings(data, groups=groups_of_texts(groups), against=against, ts=ts, bases=bases)
    try:
        tables = _tables(models, settings, measures, matching, federation, path)
    except ValueError as error:
        raise ConfigError(f"barriers: {error}") from error
    return _named(tables, names_of(paths), config, squared=federation.task.name == "regression")


def models_of(
    paths: Sequence[Path],
    federation: Federation,
    weights: Sequence[float] | None = None,
    normalisation: Normalisation = "interpolate",
) -> Models:
    """Read checkpoints of the model of a federation.

    Raises
    ------
    ConfigError
        If one cannot be read or does not fit the model.
    """
    model, seed = federation.plain_model(), federation.config.seed
    wanted = normalisation == "recompute"
    return Models(
        model,
        _read(paths, model, federation),
        weights,
        normalisation=normalisation,
        calibration=sample_of(federation.data.dataset, "train", None, seed).inputs if wanted else None,
        threads=processors(),
        seed=seed,
    )


def _tables(
    models: Models,
    settings: Settings,
    measures: Sequence[str],
    matching: MatchedBy,
    federation: Federation,
    path: PathName,
) -> dict[str, pd.DataFrame]:
    """Return all tables by name; those of barriers are called ``barriers`` and ``peaks``."""
    tables: dict[str, pd.DataFrame] = {}
    if matching != "none":
        sample = Data(*federation.calibration_sample(), federation.criterion)
        models, tables["matching"] = match(models, matching, sample)
    tables["distances"] = MEASURES["distances"].table(models, settings)
    assert settings.data is not None
    groups, against, ts = settings.groups, settings.against, settings.ts
    measured = measure(models, settings.data, groups=groups, against=against, ts=ts, bands=BANDS, path=path)
    tables["barriers"] = measured.table
    tables["peaks"] = peaks(measured, reference_of(measured.table), level=BANDS, seed=models.seed)
    return tables | {name: MEASURES[name].table(models, settings) for name in OF_CHECKPOINTS if name in measures}


def _named(
    tables: Mapping[str, pd.DataFrame], names: tuple[str, ...], config: Config, *, squared: bool
) -> ComparedCheckpoints:
    """Return a comparison whose tables have the names of the checkpoints."""
    named = {name: _with_names(table, names) for name, table in tables.items()}
    apart = named.pop("distances")
    shown = {name: with_error_unit(table, squared=squared) for name, table in named.items()}
    return ComparedCheckpoints(names, shown.pop("barriers"), shown.pop("peaks"), apart, shown, config)


def _check(
    paths: Sequence[Path], weights: Sequence[float] | None, measures: Sequence[str], tolerance: float | None
) -> None:
    if len(paths) < 2:
        raise ConfigError(f"{paths[0]} is one checkpoint; give at least two")
    if weights is not None and not (
        len(weights) == len(paths) and all(each > 0 for each in weights) and sum(weights) < math.inf
    ):
        raise ConfigError(
            f"--weights has {list(weights)}; give a positive number for each of {len(paths)} checkpoints, with a "
            "finite sum"
        )
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"--tolerance {tolerance:g} must be positive and finite, in nats, such as 0.01")
    if unknown := set(measures) - set(OF_CHECKPOINTS):
        raise ConfigError(f"measure {min(unknown)!r} must be one of {', '.join(OF_CHECKPOINTS)}")


def _read(paths: Sequence[Path], model: nn.Module, federation: Federation) -> list[Params]:
    """Read the states of a model, which takes its frozen tensors from them."""
    for path in paths:
        check_file_of_checkpoint(path)
    read = [read_checkpoint(path, model, federation.config.model.name) for path in paths]
    try:
        adopt_frozen_(model, dict(zip(map(str, paths), read, strict=True)))
    except ValueError as error:
        raise ConfigError(f"checkpoints: {error}") from error
    return [_to(federation.device, state) for state in read]


def write_compared(comparison: ComparedCheckpoints, folder: Path, command: str = "") -> Path:
    """Write the page, its figures as PDF and PNG, and the tables as parquet; return the page's path.

    Parameters
    ----------
    command
        The command that measured this, if there was one.
    """
    config = comparison.config
    rows, shown = comparison.barriers, comparison.shown
    along = f", along the path {rows['path'].iloc[0]}" if "path" in rows else ""
    coarse = f", {text}" if (text := two_precisions(rows)) else ""
    page = write_checkpoints(
        folder,
        shown.names,
        rows,
        comparison.peaks,
        shown.others,
        files=comparison.names,
        subtitle=f"{config.model.name} on {config.data.name}, {how_many(int(rows['n'].max()), 'example')}, "
        f"{rows['sampling'].iloc[0]}{coarse}{along}",
        settings=write_toml(config.model_dump(mode="json", include=set(SETTABLE))),
        command=command,
    )
    write_parquet(folder / "barriers.parquet", comparison.barriers)
    write_parquet(folder / "peaks.parquet", comparison.peaks)
    write_parquet(folder / "distances.parquet", comparison.distances)
    for name, table in comparison.others.items():
        write_parquet(folder / f"{name}.parquet", table)
    return page


def sample_of(dataset: Dataset, part: str, wanted: int | None, seed: int) -> Data:
    """Return a number of examples of a part of a data set, stratified by class; 1,000 or all if none is given.

    Raises
    ------
    ConfigError
        If there are not as many.
    """
    examples = dataset.train if part == "train" else dataset.test
    if part == "train" and len(dataset.held_out):
        examples = examples[torch.from_numpy(dataset.trainable).to(examples.targets.device)]
    if wanted is not None and not 1 <= wanted <= len(examples):
        raise ConfigError(
            f"--examples {wanted}: {dataset.name!r} has {len(examples)} {part} examples; take from 1 to that many"
        )
    count = min(EXAMPLES, len(examples)) if wanted is None else wanted
    chosen = stratified(examples.labels.cpu().numpy(), count, rng(seed, "evaluation sample"))
    sample = examples[torch.from_numpy(chosen).to(examples.targets.device)]
    is_stratified = count < len(examples) and not sample.targets.is_floating_point()
    whole = len(examples) if is_stratified else None
    return Data(dataset.normalise(sample.inputs), sample.targets, stratified_from=whole)


def names_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the files' names; if two are equal, the parts of their paths that differ."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return tuple(names)
    before = common_start([path.parts for path in paths])
    after = common_start([path.parts[before:][::-1] for path in paths])
    between = ["/".join(path.parts[before : len(path.parts) - after]) for path in paths]
    return tuple(between if all(between) and len(set(between)) == len(between) else map(str, paths))


def _with_names(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    named = dict(enumerate(names)) | {AVERAGE: "average"}
    ends = [end for end in ("base", "other") if end in table]
    return table.assign(**{f"{end}_name": table[end].map(named) for end in ends})


def _to(device: torch.device, state: Params) -> Params:
    return {key: value.to(device) for key, value in state.items()}
