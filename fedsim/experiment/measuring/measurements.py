"""What a run measures of the models that its clients upload: which mixes of them, and on which data."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple, get_args

import pandas as pd
from torch import Tensor

from fedsim.alignment.matched import match_models, symmetries_of
from fedsim.analysis import barriers, criticality, distances, interaction, robustness, similarity
from fedsim.analysis.cka import LEAST, cka
from fedsim.analysis.connectivity import connectivity
from fedsim.analysis.features.walks import DifferentCallsError
from fedsim.analysis.mixing.average import with_average
from fedsim.analysis.mixing.groups import groups_of_texts, named_groups
from fedsim.analysis.mixing.mixes import AVERAGE, Pair
from fedsim.analysis.spectra import spectra
from fedsim.analysis.stitching import stitching
from fedsim.config import Config
from fedsim.config.expectation import MatchedBy, Measure
from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, combine
from fedsim.seeds import rng
from fedsim.strategy import ClientUpdate

logger = logging.getLogger(__name__)
MEASURES = ("barriers", "gate", "matching", *get_args(Measure))


class View(NamedTuple):
    """Examples that models are measured on: all of them, or that of one client, by its position."""

    data: str
    inputs: Tensor
    targets: Tensor
    base: int | None = None


def pairs_of(config: Config, models: int) -> list[Pair]:
    """Draw the pairs of a round as positions among its models, each in both directions.

    Rounds with equally many models have the same pairs.
    """
    every = list(combinations(range(models), 2))
    count = min(config.barriers.pairs, len(every))
    chosen = sorted(rng(config.seed, "barrier pairs").choice(len(every), size=count, replace=False)) if count else []
    return [pair for index in chosen for pair in (every[index], every[index][::-1])]


def check_groups(federation: Federation) -> None:
    """Check that every group of ``[barriers]`` has layers.

    Raises
    ------
    ConfigError
        If one matches nothing.
    """
    try:
        named_groups(federation.layers, groups_of_texts(federation.config.barriers.groups))
    except ValueError as error:
        raise ConfigError(f"[barriers] groups: {error}") from error


def check_matching(federation: Federation) -> None:
    """Check that the units of the model can be matched, if ``[barriers] matching`` asks for it.

    Raises
    ------
    ConfigError
        If what the model computes does not say which of its units can change places.
    """
    if set(federation.config.barriers.matching) != {"none"}:
        try:
            symmetries_of(federation.model(), federation.calibration())
        except ValueError as error:
            raise ConfigError(f'[barriers] matching: {error}; use ["none"] with this model') from error


def check_examples(federation: Federation) -> None:
    """Check that there are enough examples for what ``[barriers] measures`` asks for.

    Raises
    ------
    ConfigError
        If CKA has too few.
    """
    data, settings = federation.data, federation.config.barriers
    available = {"server": len(data.dataset.test), "train": len(data.trained_on)}
    for name in settings.on:
        if "cka" in settings.measures and available.get(name, LEAST) < LEAST:
            raise ConfigError(
                f'[barriers] measures: cka needs at least {LEAST} examples, and on = "{name}" has {available[name]}; '
                "use more data, or leave out cka"
            )


def whole_models(federation: Federation, updates: Sequence[ClientUpdate]) -> list[Params]:
    """Return the models as uploaded, with what is not shared from the probe."""
    # Integer buffers travel in the probe; the order of the entries is the model's.
    return [combine(federation.initial, update.shared | update.probe) for update in updates]


def measure_updates(
    federation: Federation, updates: Sequence[ClientUpdate], start: Params, threads: int
) -> dict[str, pd.DataFrame]:
    """Measure the models of a round as uploaded, before averaging.

    Parameters
    ----------
    updates
        With finite parameters, and all layers that are not shared in the probe.
    start
        The global model at the round's start.

    Returns
    -------
    dict
        A table for each kind of measurement, with clients for models, what was measured on in the column ``data``, and
        by what the models had been matched in ``matching`` unless none ever are. What does not depend on the order of
        a model's units is measured once, and called as the first of ``[barriers] matching`` that succeeds. What cannot
        be measured of the model is left out, with a warning in the log.
    """
    clients = dict(enumerate(update.client for update in updates)) | {AVERAGE: AVERAGE}
    ways = federation.config.barriers.matching
    tables: dict[str, list[pd.DataFrame]] = {}
    again = False
    for way in ways:
        try:
            models = _Models(federation, updates, start, threads, way)
        except ValueError as error:  # models that diverge have no finite activations
            logger.warning("the models are not measured after matching by %s: %s", way, error)
            continue
        for name, table in models.tables([update.client for update in updates], again=again):
            tables.setdefault(name, []).append(table if ways == ("none",) else table.assign(matching=way))
        again = True
    return {name: _with_clients(pd.concat(several, ignore_index=True), clients) for name, several in tables.items()}


class _Models:
    """The models of a round, matched in one way, each measured in the same ways."""

    def __init__(
        self, federation: Federation, updates: Sequence[ClientUpdate], start: Params, threads: int, way: MatchedBy
    ) -> None:
        config = federation.config
        self.settings, self.federation = config.barriers, federation
        self.model = federation.model()
        self.uploaded = self.states = whole_models(federation, updates)
        self.start, self.moved = start, pd.DataFrame()
        self.weights = [update.num_examples for update in updates]
        if way != "none":
            sample, drawn = federation.calibration(), rng(config.seed, "matching")
            matched = match_models(self.model, self.uploaded, way, sample, weights=self.weights, rng=drawn)
            self.states, self.moved = matched.states, matched.table()
        self.ends: list[dict[str, Any]] = [{"against": "average", "weights": self.weights}]
        if pairs := pairs_of(config, len(updates)):
            self.ends.append({"against": "pairs", "pairs": pairs})
        self.groups: dict[str, Any] = {"groups": groups_of_texts(config.barriers.groups), "seed": config.seed}
        self.evaluation: dict[str, Any] = {"normalisation": self.settings.normalisation, "threads": threads}
        if self.settings.normalisation == "recompute":
            self.evaluation["calibration"] = federation.calibration()

    def tables(self, clients: Sequence[int], *, again: bool) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield tables by their kinds; ``again`` without what does not depend on the order of units."""
        if len(self.moved):
            yield "matching", self.moved
        if "distances" in self.settings.measures:
            yield "distances", self._distances()
        if "spectra" in self.settings.measures:
            yield "spectra", self._spectra(again=again)
        for view in _views(self.federation, clients):
            for name, table in self._measure(view, again=again):
                yield name, table.assign(data=view.data)

    def _distances(self) -> pd.DataFrame:
        # Units of the round's start are in the places that they have in the models as uploaded.
        start = self.start if self.states is self.uploaded else None
        tables = [distances(self.model, self.states, start=start, **self.groups, **ends) for ends in self.ends]
        return pd.concat(tables, ignore_index=True)

    def _spectra(self, *, again: bool) -> pd.DataFrame:
        """Measure the average, and the models themselves, whose spectra do not depend on the order of units."""
        *states, average = with_average(self.model, self.states, self.weights)
        table = spectra(self.model, [average] if again else [average, *states])
        return table.assign(base=table["base"] - 1)  # the average is -1

    def _measure(self, view: View, *, again: bool) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield a table for each kind of measurement; on one client's data, of that client's model only."""
        for ends in self.ends:
            if view.base is None:
                yield "barriers", self._barriers(view, ends)
            elif ends["against"] == "average":
                yield "barriers", self._barriers(view, ends | {"bases": [view.base]})
            elif own := [pair for pair in ends["pairs"] if pair[0] == view.base]:
                yield "barriers", self._barriers(view, ends | {"pairs": own})
        if view.base is None:
            yield from self._others(view)
            yield from self._features(view)
            if not again:
                yield from self._of_any_order(view)

    def _barriers(self, view: View, ends: dict[str, Any]) -> pd.DataFrame:
        return barriers(
            self.model,
            self.states,
            view.inputs,
            view.targets,
            ts=self.settings.ts if ends["against"] == "pairs" else None,
            bands=self.settings.bands or None,
            tolerance=self.settings.tolerance,
            **self.groups,
            **self.evaluation,
            **ends,
        )

    def _others(self, view: View) -> Iterator[tuple[str, pd.DataFrame]]:
        measures, models = self.settings.measures, (self.model, self.states)
        data = (view.inputs, view.targets)
        for ends in self.ends:
            if "robustness" in measures:
                yield "robustness", robustness(*models, *data, **(self.groups | self.evaluation | ends))
            if "interaction" in measures:
                yield "interaction", interaction(*models, *data, **(self.evaluation | ends))

    def _features(self, view: View) -> Iterator[tuple[str, pd.DataFrame]]:
        models, threads = (self.model, self.states), self.evaluation["threads"]
        for ends in self.ends:
            if "connectivity" in self.settings.measures:
                halfway = self._halfway(ends)
                yield from _if_possible("connectivity", connectivity, *models, view.inputs, threads=threads, **halfway)
            if "stitching" in self.settings.measures:
                yield "stitching", stitching(*models, view.inputs, view.targets, threads=threads, **ends)

    def _halfway(self, ends: dict[str, Any]) -> dict[str, Any]:
        """Return the models whose features are compared, each pair once, and where between them."""
        if ends["against"] == "average":
            return ends | {"ts": (0.5,)}
        inner = tuple(t for t in self.settings.ts if 0 < t < 1)
        return ends | {"pairs": ends["pairs"][::2], "ts": inner or (0.5,)}

    def _of_any_order(self, view: View) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield what does not depend on the order of a model's units."""
        measures, models = self.settings.measures, (self.model, self.uploaded)
        threads = self.evaluation["threads"]
        if "criticality" in measures:
            data = (view.inputs, view.targets)
            yield "criticality", criticality(*models, self.start, *data, **(self.groups | self.evaluation))
        if "similarity" in measures and len(self.uploaded) > 1:
            yield "similarity", similarity(*models, view.inputs, threads=threads)
        if "cka" in measures and len(self.uploaded) > 1:
            yield from _if_possible("cka", cka, *models, view.inputs, threads=threads)


def _if_possible(
    name: str, measure: Callable[..., pd.DataFrame], *arguments: Any, **options: Any
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a table, or none of a model whose features cannot be compared."""
    try:
        table = measure(*arguments, **options)
    except DifferentCallsError as error:
        logger.warning("%s is not measured: %s", name, error)
    else:
        yield name, table


def _views(federation: Federation, clients: Sequence[int]) -> Iterator[View]:
    """Yield the data that ``[barriers] on`` names, the same examples in each round."""
    data, examples = federation.data, federation.config.barriers.examples
    for name in federation.config.barriers.on:
        if name == "server":
            yield View(name, *data.test(examples))
        elif name == "train":
            yield View(name, *data.train_sample(examples))
        else:
            for position, client in enumerate(clients):
                inputs, targets = data.client(client).test
                yield View(name, inputs[:examples], targets[:examples], position)


def _with_clients(table: pd.DataFrame, clients: dict[int, int]) -> pd.DataFrame:
    """Return a table whose models are named by their clients."""
    return table.assign(**{column: table[column].map(clients) for column in ("base", "other") if column in table})
