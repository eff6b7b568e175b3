"""What ``[tune]`` has chosen, as written next to an experiment's runs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError
from fedsim.reading import read_bytes
from fedsim.results.result import Result
from fedsim.results.seals import OF_ITSELF, DamagedError, read_sealed

CHOICES = "tuning.json"
AGAIN = "remove it and give 'fedsim run' again"


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
        content = json.loads(read_bytes(path))
        if OF_ITSELF in content:  # which an earlier version did not write
            content = read_sealed(path, "choices")
        choices = list(content["choices"])
        for choice in choices:
            if not isinstance(choice["chosen"] or {}, Mapping):
                raise TypeError(f"what was chosen is {choice['chosen']!r}")
        return choices
    except DamagedError as error:
        raise ConfigError(f"{error}; {AGAIN}") from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {AGAIN}") from error


def choices_of(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return what was chosen for the experiments of these runs, as `read_choices` does."""
    paths = dict.fromkeys(result.folder.path.parent / CHOICES for result in results)
    return [choice for path in paths for choice in read_choices(path)]


def tuned_settings(results: Iterable[Result]) -> set[str]:
    """Return the settings that were tuned separately for each strategy; runs that differ in these may be compared."""
    return {key for choice in choices_of(results) for key in choice["chosen"] or ()}


def edges_of(choice: Mapping[str, Any]) -> list[str]:
    """Return the chosen values at an edge of what was tried, such as ``local.lr = 0.4 of 0.1, 0.2, 0.4``."""
    scores = [score for score in choice.get("scores", ()) if isinstance(score, Mapping)]
    tried = [score["values"] for score in scores if isinstance(score.get("values"), Mapping)]
    return [
        f"{key} = {value:g} of {', '.join(f'{number:g}' for number in numbers)}"
        for key, value in (choice["chosen"] or {}).items()
        if (numbers := grid_at_edge(value, [values.get(key) for values in tried]))
    ]


def grid_at_edge(value: Any, tried: Iterable[Any]) -> list[float]:
    """Return the numbers that were tried, in their order, if a value is the first or the last of several."""
    numbers = sorted({each for each in tried if isinstance(each, int | float) and not isinstance(each, bool)})
    return numbers if len(numbers) > 1 and value in (numbers[0], numbers[-1]) else []
