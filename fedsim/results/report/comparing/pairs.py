"""Runs compared with those of a baseline with the same partition and seed, client by client."""

import itertools
import json
import logging
import tomllib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fedsim.config import suggest
from fedsim.config.choices import CATALOGUES
from fedsim.config.names import canonical
from fedsim.config.toml import flat
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.gains import Gain, Values, gain_of
from fedsim.results.report.comparing.groups import registered_label
from fedsim.results.report.comparing.question import Question
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings

logger = logging.getLogger(__name__)


class AmbiguousError(ConfigError):
    """Two runs of a baseline could both be paired with another run."""


class Baseline:
    """The runs that others are compared with.

    Parameters
    ----------
    name
        A method's label or name in any spelling, or ``SETTING=VALUE``.
    results
        All runs that are compared.

    Raises
    ------
    ConfigError
        If none of them is such a run, or one could be paired with two of them.
    """

    def __init__(self, name: str, results: Sequence[Result]) -> None:
        runs, setting = _chosen(name, results)
        shown = {result.strategy for result in runs}
        self.name, self._given = shown.pop() if setting is None and len(shown) == 1 else name, name
        self._own = _own_setting(setting)
        self._free = {self._own, *tuned_settings(results)}
        by_key: dict[str, list[Result]] = {}
        for run in runs:
            by_key.setdefault(pairing_key(run, self._free), []).append(run)
        self._partners = {
            id(each): self._partner(each, by_key.get(pairing_key(each, self._free), [])) for each in results
        }
        others = [each for each in results if not any(each is run for run in runs)]
        if others and all(self.partner(each) is None for each in others):
            logger.warning("no run has the partition, seed and other settings of a run of the baseline %s", name)

    def partner(self, result: Result) -> Result | None:
        """Return the run of the baseline with the same partition, seed and other settings; None if there is none."""
        return self._partners[id(result)]

    def gain(self, members: Iterable[Result], values: Values, *, higher_is_better: bool = True) -> Gain:
        """Compare runs with their partners, client by client; runs of the baseline itself have no gain.

        Parameters
        ----------
        members
            Runs of one setting, among the results.
        """
        return gain_of(self.pairs(members), values, higher_is_better=higher_is_better)

    def pairs(self, members: Iterable[Result]) -> list[tuple[Result, Result]]:
        """Return runs, each with its partner, without those that have none or are of the baseline themselves."""
        pairs = [(result, self.partner(result)) for result in members]
        return [(result, partner) for result, partner in pairs if partner is not None and partner is not result]

    def _partner(self, result: Result, candidates: Sequence[Result]) -> Result | None:
        """Return the only candidate, or the one with the result's own value of every tuned setting."""
        if any(result is each for each in candidates):
            return result
        if len(candidates) > 1:
            own = pairing_key(result, {self._own})
            candidates = [each for each in candidates if pairing_key(each, {self._own}) == own] or candidates
        if len(candidates) > 1:
            first, second = (each.folder.path.name for each in candidates[:2])
            raise AmbiguousError(
                f"--baseline {self._given!r} matches both {first} and {second} for {result.folder.path.name}; name "
                "one of them by its whole label or by SETTING=VALUE, or compare fewer runs"
            )
        return candidates[0] if candidates else None


def reference(name: str, results: Sequence[Result]) -> Baseline | None:
    """Return the runs of a strategy with its defaults as a baseline, if they are among those compared."""
    if not plain_runs(name, results):
        return None
    try:
        return Baseline(name, results)
    except AmbiguousError as error:
        logger.warning("no gain over %s is shown: %s", name, error)
        return None


def plain_runs(name: str, results: Sequence[Result]) -> list[Result]:
    """Return the runs of a strategy with its defaults."""
    return [result for result in results if registered_label(result) == name]


def compared_setting(question: Question, results: Sequence[Result]) -> str:
    """Return the setting in which runs are compared: what they are grouped by, that of the baseline, or ``strategy``.

    Raises
    ------
    ConfigError
        If none of the runs is of the baseline.
    """
    if question.by or question.baseline is None:
        return _own_setting(question.by)
    return _own_setting(_chosen(question.baseline, results)[1])


def runs_of(name: str, results: Sequence[Result]) -> list[Result]:
    """Return the runs of a baseline.

    Raises
    ------
    ConfigError
        If none of the runs is of this baseline.
    """
    return _chosen(name, results)[0]


def _own_setting(setting: str | None) -> str:
    """Return what is compared: strategies, or, for a baseline of one value of a setting, its other values."""
    return "strategy" if setting is None or setting.startswith("strategy.") else setting


def pairing_key(result: Result, free: Collection[str]) -> str:
    """Return what paired runs have in common: the partition with its seed, and all settings except the free ones."""
    kept = {
        key: value
        for key, value in result.changed_settings.items()
        if not any(key == each or key.startswith(f"{each}.") for each in free)
    }
    return json.dumps([result.partition_name, kept], sort_keys=True)


def _chosen(name: str, results: Sequence[Result]) -> tuple[list[Result], str | None]:
    """Return the runs of a baseline, and the setting by which they are chosen, if they are.

    A whole label comes first, then the name of a method, then a setting.
    """
    strategies = CATALOGUES["strategies"]
    labels = [(result.strategy, registered_label(result)) for result in results]
    label = canonical(name, itertools.chain(*labels))
    if runs := [result for result, own in zip(results, labels, strict=True) if label in own]:
        return runs, None
    setting, equals, value = name.partition("=")
    called = value.strip(" \"'") if setting == "strategy.name" else name
    if runs := [result for result in results if strategies.is_called(result.config.strategy, called)]:
        return runs, None
    if equals and (runs := [result for result in results if _has(result, setting, value)]):
        return runs, setting
    names = {strategies.name_of(result.config.strategy) for result in results}
    known = suggest(name, sorted({*itertools.chain(*labels), *names}))
    raise ConfigError(f"--baseline {name!r} is not among these runs; give a strategy or SETTING=VALUE{known}")


def _has(result: Result, setting: str, text: str) -> bool:
    value = flat(result.config.model_dump(mode="json")).get(setting)
    return value is not None and _is_written(value, text)


def _is_written(value: Any, text: str) -> bool:
    """Return whether a text means this value, as TOML or literally."""
    try:
        return bool(tomllib.loads(f"value = {text}")["value"] == value)
    except tomllib.TOMLDecodeError:
        return str(value) == text
