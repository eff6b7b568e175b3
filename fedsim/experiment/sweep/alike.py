"""Runs of a sweep that are one run, or that give the same numbers under two names."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedsim.config import Config, naming
from fedsim.errors import ConfigError
from fedsim.shortening import with_and
from fedsim.strategy import ClientRule, Strategy
from fedsim.strategy.hooks import HOOKS

NAMED = 3  # groups of equal combinations


def check_distinct(folders: Sequence[str], names: Sequence[str]) -> None:
    """Check that no two combinations of a sweep are one run.

    Parameters
    ----------
    folders
        Names of the runs' folders, which equal runs share.
    names
        What the runs are called.

    Raises
    ------
    ConfigError
        If two are.
    """
    places: dict[str, list[int]] = {}
    for place, folder in enumerate(folders, start=1):
        places.setdefault(folder, []).append(place)
    equal = [
        f"{with_and(list(map(str, each)))} are {'all' if len(each) > 2 else 'both'} {names[each[0] - 1]} ({folder})"
        for folder, each in places.items()
        if len(each) > 1
    ]
    if equal:
        more = f"; and {len(equal) - NAMED} more" if len(equal) > NAMED else ""
        raise ConfigError(
            f"[sweep]: of the {len(folders)} combinations, {'; '.join(equal[:NAMED])}{more}: the same run; remove all "
            "but one"
        )


class Alike:
    """Runs that average the same layers under two names, such as ``body`` and ``!head``, or ``none`` and local."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, config: Config, strategy: Strategy) -> None:
        """Add a run with its strategy."""
        changed: dict[str, Any] = naming.changed_settings(config)
        options = dict(changed.get("strategy", {}))
        if _only_averages(strategy):
            options = {key: value for key, value in options.items() if key != "name"} | {"shared": ""}
        if "shared" in options:
            options["shared"] = sorted(strategy.group)
        key = json.dumps([changed | {"strategy": options}, config.seed], sort_keys=True, default=str)
        self._names.setdefault(key, []).append(name)

    def notes(self) -> Iterator[str]:
        """Yield a line for each set of such runs."""
        for names in self._names.values():
            if len(names) > 1:
                yield f"{' and '.join(names)} average the same layers and give the same numbers; one of them is enough"


def _only_averages(strategy: Strategy) -> bool:
    """Return whether a strategy does nothing but average its layer group in every round."""
    same = (getattr(type(strategy), name) is getattr(Strategy, name) for name in HOOKS if name != "prepare")
    return strategy.client_rule is ClientRule and all(same)
