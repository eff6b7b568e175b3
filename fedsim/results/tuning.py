"""What ``[tune]`` has chosen, as written next to an experiment's runs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError
from fedsim.reading import read_bytes
from fedsim.results.result import Result

CHOICES = "tuning.json"


def read_choices(path: Path) -> list[dict[str, Any]]:
    """Return what was chosen for each combination of settings, with all scores; nothing if there is no such file.

    Raises
    ------
    ConfigError
        If the file is damaged.
    """
    if not path.exists():
        return []
    try:
        choices = list(json.loads(read_bytes(path))["choices"])
        for choice in choices:
            if not isinstance(choice["chosen"] or {}, Mapping):
                raise TypeError(f"what was chosen is {choice['chosen']!r}")
        return choices
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it and give 'fedsim run' again") from error


def tuned_settings(results: Iterable[Result]) -> set[str]:
    """Return the settings that were tuned separately for each strategy; runs that differ in these may be compared."""
    paths = {result.folder.path.parent / CHOICES for result in results}
    return {key for path in paths for choice in read_choices(path) for key in choice["chosen"] or ()}
