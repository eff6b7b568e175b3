"""What a run measures of the models that its clients upload in a round, before they are averaged."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import pandas as pd

from fedsim.analysis import barriers
from fedsim.analysis.data import Data
from fedsim.analysis.matching import match
from fedsim.analysis.mixing.groups import groups_of_texts
from fedsim.analysis.mixing.mixes import Against, Pair
from fedsim.analysis.mixing.names import AVERAGE, FACTORS
from fedsim.analysis.models import Models
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import MEASURES, Measure
from fedsim.config import Config
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, combine
from fedsim.results.measured import with_error_unit, with_matching
from fedsim.seeds import rng
from fedsim.strategy import ClientUpdate

logger = logging.getLogger(__name__)
Tables = Iterator[tuple[str, pd.DataFrame]]


class Measured(NamedTuple):
    """What was measured of a round's models.

    Parameters
    ----------
    tables
        A table for each kind of measurement.
    average
        The average of the models as uploaded, weighted by training examples.
    """

    tables: dict[str, pd.DataFrame]
    average: Params


class View(NamedTuple):
    """Examples that models are measured on, by the name of their kind.

    Parameters
    ----------
    base
        Position of the client whose examples they are, and whose model alone is measured on them; None for all.
    """

    name: str
    data: Data
    base: int | None = None


def pairs_of(config: Config, models: int) -> list[Pair]:
    """Draw the pairs of a round as positions among its models, each in both directions.

    Rounds with equally many models have the same pairs.
    """
    every = list(combinations(range(models), 2))
    count = min(config.barriers.pairs, len(every))
    chosen = sorted(rng(config.seed, "barrier pairs").choice(len(every), size=count, replace=False)) if count else []
    return [pair for index in chosen for pair in (every[index], every[index][::-1])]


def whole_models(federation: Federation, updates: Sequence[ClientUpdate]) -> list[Params]:
    """Return the models as uploaded, with what is not shared from the probe."""
    # Integer buffers travel in the probe; the order of the entries is the model's.
    return [combine(federation.initial, update.shared | update.probe) for update in updates]


def measured_models(federation: Federation, updates: Sequence[ClientUpdate]) -> list[Params]:
    """Return the models that a strategy's barriers are measured on: the clients' own, or what stands in for them."""
    own = whole_models(federation, updates)
    return [combine(model, update.measured) for model, update in zip(own, updates, strict=True)]


def uploaded_models(federation: Federation, updates: Sequence[ClientUpdate], threads: int) -> Models:
    """Return the models as uploaded, to be measured as ``[barriers]`` says."""
    normalisation = federation.config.barriers.normalisation
    return Models(
        federation.model(),
        whole_models(federation, updates),
        weights=[update.num_examples for update in updates],
        normalisation=normalisation,
        calibration=federation.calibration() if normalisation == "recompute" else None,
        threads=threads,
        seed=federation.config.seed,
    )


def measure_updates(federation: Federation, updates: Sequence[ClientUpdate], start: Params, threads: int) -> Measured:
    """Measure the models of a round as uploaded, before averaging.

    Parameters
    ----------
    updates
        With finite parameters, and all layers that are not shared in the probe.
    start
        The global model at the round's start.

    Returns
    -------
    Measured
        Tables with clients for models, the kind of data in the column ``data``, and in ``matching`` by what the models
        had been matched, unless none ever are. What does not depend on the order of a model's units is measured once,
        under the first way of ``[barriers] matching`` that succeeds. What cannot be measured of the model is left out,
        with a warning in the log, and so are, where there is only one model, barriers and what compares models on data.
    """
    clients = [update.client for update in updates]
    if len(clients) == 1:
        logger.warning(
            "nothing compares models on data, as barriers do: client %d's model is the only one, its own average",
            clients[0],
        )
    uploaded = uploaded_models(federation, updates, threads)
    round_ = _Round(federation, clients, uploaded, start)
    ways = federation.config.barriers.matching
    tables: dict[str, list[pd.DataFrame]] = {}
    again = False
    sample = cache(lambda: Data(*federation.calibration_sample(), federation.criterion))
    for way in ways:
        try:
            matched = None if way == "none" else match(uploaded, way, sample())
        except ValueError as error:  # models that diverge have no finite activations
            logger.warning("the models are not measured after matching by %s: %s", way, error)
            continue
        models, moved = matched or (uploaded, pd.DataFrame())
        if len(moved):
            tables.setdefault("matching", []).append(with_matching(moved, way, ways))
        for name, table in round_.tables(models, again=again):
            tables.setdefault(name, []).append(with_matching(table, way, ways))
        again = True
    squared = federation.task.name == "regression"
    named = {
        name: with_error_unit(_with_clients(pd.concat(several, ignore_index=True), clients), squared=squared)
        for name, several in tables.items()
    }
    return Measured(named, uploaded.average)


@dataclass(frozen=True)
class _Round:
    """What the models of a round are measured with, however they were matched.

    Parameters
    ----------
    clients
        Whose models they are.
    uploaded
        The models before matching.
    start
        The global model at the round's start.
    """

    federation: Federation
    clients: Sequence[int]
    uploaded: Models
    start: Params

    def tables(self, models: Models, *, again: bool) -> Tables:
        """Yield tables by their names; ``again`` without what does not depend on the order of units."""
        for measure in self._asked(on_data=False):
            yield from self._measure(measure, models, None, again=again)
        for view in self._views():
            for name, table in self._on(view, models, again=again):
                yield name, table.assign(data=view.name)

    def _on(self, view: View, models: Models, *, again: bool) -> Tables:
        """Yield what is measured on some data; on one client's data, of that client's model only."""
        bands = self.federation.config.barriers.bands or None
        paths = self.federation.config.barriers.path
        # One model is its own average: its barriers would be 0 whatever it is, and so with all that compares models.
        compared = self._settings(view.base) if len(models) > 1 else []
        for each, path in product(compared, paths):
            table = barriers(
                models, view.data, groups=each.groups, against=each.against, ts=each.ts, bands=bands, path=path
            )
            yield "barriers", table if tuple(paths) == (FACTORS,) else table.assign(path=path)
        for measure in self._asked(on_data=True) if view.base is None else ():
            if compared or not measure.compares:
                yield from self._measure(measure, models, view.data, again=again)

    def _measure(self, measure: Measure, models: Models, data: Data | None, *, again: bool) -> Tables:
        if len(models) < measure.least_models or (again and measure.any_order):
            return
        measured = self.uploaded if measure.any_order else models
        # Units of the round's start are in the places that they have in the models as uploaded.
        start = self.start if measured is self.uploaded else None
        # The spectra of the models themselves do not depend on the order of units.
        bases = [AVERAGE] if again else [AVERAGE, *range(len(models))]
        settings = self._settings() if measure.compares else self._settings()[:1]
        for each in settings[1:] if measure.of_pairs else settings:
            yield measure.name, measure.table(measured, replace(each, data=data, start=start, bases=bases))

    def _asked(self, *, on_data: bool) -> list[Measure]:
        every = (MEASURES[name] for name in self.federation.config.barriers.measures)
        return [measure for measure in every if measure.on_data == on_data]

    def _settings(self, base: int | None = None) -> list[Settings]:
        """Return what models, or only one of them, are compared with: their average, and each other."""
        config = self.federation.config
        groups = groups_of_texts(config.barriers.groups)
        average: Against = "average" if base is None else [(base, AVERAGE)]
        pairs = [pair for pair in pairs_of(config, len(self.clients)) if base in (None, pair[0])]
        with_average = Settings(groups=groups, against=average)
        return [with_average] + ([replace(with_average, against=pairs, ts=config.barriers.ts)] if pairs else [])

    def _views(self) -> Iterator[View]:
        """Yield the data that ``[barriers] on`` names, the same examples in each round."""
        data, settings = self.federation.data, self.federation.config.barriers
        examples, tolerance, precision = settings.examples, settings.tolerance, settings.precision
        criterion = self.federation.criterion
        for name in settings.on:
            if name == "clients":
                for position, client in enumerate(self.clients):
                    inputs, targets = data.client(client).test
                    own = Data(inputs[:examples], targets[:examples], criterion, tolerance, precision=precision)
                    yield View(name, own, position)
            else:
                of_server = name == "server"
                sample = data.test(examples) if of_server else data.train_sample(examples)
                whole = data.tested_from if of_server else len(data.trained_on)
                is_stratified = len(sample[1]) < whole and not sample[1].is_floating_point()
                yield View(name, Data(*sample, criterion, tolerance, whole if is_stratified else None, precision))


def _with_clients(table: pd.DataFrame, clients: Sequence[int]) -> pd.DataFrame:
    """Return a table whose models are named by their clients."""
    names = dict(enumerate(clients)) | {AVERAGE: AVERAGE}
    return table.assign(**{column: table[column].map(names) for column in ("base", "other") if column in table})
