"""Runs compared with those of a baseline with the same partition and seed, client by client."""

import itertools
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from fedsim.config import as_toml
from fedsim.config.choices import CATALOGUES
from fedsim.config.names import canonical
from fedsim.config.toml import flat, without
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.best_baseline import best_on_validation, describe_choice
from fedsim.results.report.comparing.gains import Gain, Values, gain_of
from fedsim.results.report.comparing.groups import check_setting, registered_label
from fedsim.results.report.comparing.question import DEFAULT, Question
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings

BEST, EXAMPLE = "best:", "best:FedPer,LG-FedAvg"
COMMA = re.compile(r",(?![^(]*\))")  # except commas between a method's options


class AmbiguousError(ConfigError):
    """Two runs of a baseline could both be paired with another run.

    Parameters
    ----------
    which
        The three runs.
    """

    def __init__(self, given: str, which: str) -> None:
        self.which = which
        super().__init__(
            f"--baseline {given!r} matches both {which}; name one of them by its whole label or by SETTING=VALUE, or "
            "compare fewer runs"
        )


class Baseline:
    """The runs that others are compared with.

    Parameters
    ----------
    name
        A method's label or name in any spelling, ``SETTING=VALUE``, or ``best:`` and names with commas between them:
        in each setting, the one of these methods that is best on validation data.
    results
        All runs that are compared.
    question
        What is best, in which round.

    Raises
    ------
    ConfigError
        If none of them is such a run, or one could be paired with two of them.
    """

    def __init__(self, name: str, results: Sequence[Result], question: Question = DEFAULT) -> None:
        runs, setting = _chosen(name, results, question)
        tuned = tuned_settings(results)
        self.note = f"{name} by validation data: {describe_choice(runs, tuned)}" if name.startswith(BEST) else ""
        shown = {result.strategy for result in runs}
        self.name, self._given = shown.pop() if setting is None and len(shown) == 1 else name, name
        self._own = _own_setting(setting)
        self._free = {self._own, *tuned}
        by_key: dict[str, list[Result]] = {}
        for run in runs:
            by_key.setdefault(pairing_key(run, self._free), []).append(run)
        self._partners = {
            id(each): self._partner(each, by_key.get(pairing_key(each, self._free), [])) for each in results
        }

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
            raise AmbiguousError(self._given, f"{first} and {second} for {result.folder.path.name}")
        return candidates[0] if candidates else None


def reference(name: str, results: Sequence[Result]) -> Baseline | None:
    """Return the runs of a strategy with its defaults as a baseline, if they are among those compared and clear."""
    try:
        return Baseline(name, results) if plain_runs(name, results) else None
    except AmbiguousError:  # `why_no_reference` names the runs
        return None


def why_no_reference(name: str, results: Sequence[Result]) -> str | None:
    """Return which two runs of a strategy could be paired with one, so that they are no baseline; None if they are."""
    try:
        if plain_runs(name, results):
            Baseline(name, results)
    except AmbiguousError as error:
        return error.which
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
    return _own_setting(_chosen(question.baseline, results, question)[1])


def runs_of(name: str, results: Sequence[Result], question: Question = DEFAULT) -> list[Result]:
    """Return the runs of a baseline.

    Raises
    ------
    ConfigError
        If none of the runs is of this baseline.
    """
    return _chosen(name, results, question)[0]


def _own_setting(setting: str | None) -> str:
    """Return what is compared: strategies, or the other values of a setting; those of a name with their options."""
    return "strategy" if setting is None or setting.startswith("strategy.") else setting.removesuffix(".name")


def pairing_key(result: Result, free: Collection[str]) -> str:
    """Return what paired runs have in common: the partition with its seed, and all settings except the free ones."""
    return json.dumps([result.partition_name, without(result.changed_settings, free)], sort_keys=True)


def _chosen(name: str, results: Sequence[Result], question: Question) -> tuple[list[Result], str | None]:
    """Return the runs of a baseline, and the setting by which they are chosen, if they are.

    A whole label comes first, then the name of a method, then a setting.
    """
    if name.startswith(BEST):
        several = [each.strip() for each in COMMA.split(name.removeprefix(BEST))]
        if not all(several):
            raise ConfigError(f"--baseline {name!r} must have a method's name after best: and each comma, as {EXAMPLE}")
        found = {id(run): run for each in several for run in _chosen(each, results, question)[0]}
        return best_on_validation([*found.values()], question, tuned_settings(results)), None
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
    raise ConfigError(f"--baseline {name!r} is not among these runs; {_meant(name, labels, results)}")


def _meant(name: str, labels: Sequence[tuple[str, str]], results: Sequence[Result]) -> str:
    """Return what may be meant by a wrong baseline: a value of its setting, or one of the methods that are there."""
    setting, equals, _ = name.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", setting.strip()):
        check_setting(results, setting.strip(), "--baseline")
        found = [_value(each, setting.strip()) for each in results]
        values = dict.fromkeys(as_toml(each) for each in found if each is not None)
        return f"{setting.strip()} is {' or '.join(values)}"
    strategies = CATALOGUES["strategies"]
    every = {*itertools.chain(*labels), *(strategies.name_of(result.config.strategy) for result in results)}
    near = get_close_matches(name, sorted(every), n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}the methods are {', '.join(dict.fromkeys(label for label, _ in labels))}; or give SETTING=VALUE"


def _has(result: Result, setting: str, text: str) -> bool:
    value = _value(result, setting)
    return value is not None and _is_written(value, text)


def _value(result: Result, setting: str) -> Any:
    """Return the value of a setting, or of what is shown with the settings, such as ``strategy.source``."""
    value = flat(result.config.model_dump(mode="json")).get(setting)
    return result.shown_settings.get(setting) if value is None else value


def _is_written(value: Any, text: str) -> bool:
    """Return whether a text means this value, as TOML or literally."""
    try:
        return bool(tomllib.loads(f"value = {text}")["value"] == value)
    except tomllib.TOMLDecodeError:
        return str(value) == text
