"""Runs compared with those of a baseline with the same partition and seed, client by client."""

import json
import logging
import tomllib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fedsim.config import suggest
from fedsim.config.names import canonical
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.gains import Gain, Values, gain_of
from fedsim.results.result import Result, flat
from fedsim.results.tuning import tuned_settings

logger = logging.getLogger(__name__)


class AmbiguousError(ConfigError):
    """Two runs of a baseline could both be paired with another run."""


class Baseline:
    """The runs that others are compared with.

    Parameters
    ----------
    name
        A strategy's label or name, or ``SETTING=VALUE``.
    results
        All runs that are compared.

    Raises
    ------
    ConfigError
        If none of them is such a run, or one could be paired with two of them.
    """

    def __init__(self, name: str, results: Sequence[Result]) -> None:
        labels = {result.strategy for result in results}
        names = {result.config.strategy.name for result in results}
        self.name = name = canonical(name, names)
        setting = name.partition("=")[0] if "=" in name and name not in labels else None
        runs = [result for result in results if _is_chosen(result, name, setting, by_label=name in labels)]
        if not runs:
            known = suggest(name, sorted(labels | names))
            raise ConfigError(f"--baseline {name!r} is none of these runs; give a strategy or SETTING=VALUE{known}")
        # A strategy is compared with others; runs of one value of a setting with those of the same strategy.
        self._own = "strategy" if setting is None or setting.startswith("strategy.") else setting
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
        pairs = [(result, self.partner(result)) for result in members]
        others = [(result, partner) for result, partner in pairs if partner is not None and partner is not result]
        return gain_of(others, values, higher_is_better=higher_is_better)

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
                f"--baseline {self.name!r} matches both {first} and {second} for {result.folder.path.name}; name "
                "one of them by its whole label or by SETTING=VALUE, or compare fewer runs"
            )
        return candidates[0] if candidates else None


def reference(name: str, results: Sequence[Result]) -> Baseline | None:
    """Return the runs of a strategy with its defaults as a baseline, if they are among those compared."""
    if not any(result.strategy == name for result in results):
        return None
    try:
        return Baseline(name, results)
    except AmbiguousError as error:
        logger.warning("no gain over %s is shown: %s", name, error)
        return None


def pairing_key(result: Result, free: Collection[str]) -> str:
    """Return what paired runs have in common: the partition with its seed, and all settings except the free ones."""
    kept = {
        key: value
        for key, value in result.changed_settings.items()
        if not any(key == each or key.startswith(f"{each}.") for each in free)
    }
    return json.dumps([result.partition_name, kept], sort_keys=True)


def _is_chosen(result: Result, name: str, setting: str | None, *, by_label: bool) -> bool:
    if setting is None:
        return name == (result.strategy if by_label else result.config.strategy.name)
    value = flat(result.config.model_dump(mode="json")).get(setting)
    return value is not None and _is_written(value, name.partition("=")[2])


def _is_written(value: Any, text: str) -> bool:
    """Return whether a text means this value, as TOML or literally."""
    try:
        return bool(tomllib.loads(f"value = {text}")["value"] == value)
    except tomllib.TOMLDecodeError:
        return str(value) == text
