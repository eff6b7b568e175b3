"""What ``[tune]`` has chosen, as written next to an experiment's runs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError
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
        return list(json.loads(path.read_text())["choices"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it and give 'fedsim run' again") from error


def tuned_settings(results: Iterable[Result]) -> set[str]:
    """Return the settings that were tuned separately for each strategy; runs that differ in these may be compared."""
    paths = {result.folder.path.parent / CHOICES for result in results}
    return {key for path in paths for choice in read_choices(path) for key in choice["chosen"] or ()}
