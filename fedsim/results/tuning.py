"""What ``[tune]`` has chosen, as written next to an experiment's runs."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError
from fedsim.reading import read_bytes
from fedsim.results.result import Result
from fedsim.results.seals import OF_ITSELF, DamagedError, read_sealed

CHOICES = "tuning.json"
SAME = 1e-9  # of a score: less is a matter of rounding
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


def choices_for(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return what was chosen for these runs, and for no other runs of their experiments."""
    names = {result.folder.path.name for result in results}
    # An earlier version did not write for which runs a choice is.
    return [choice for choice in choices_of(results) if "for" not in choice or not names.isdisjoint(choice["for"])]


def tuned_settings(results: Iterable[Result]) -> set[str]:
    """Return the settings that were tuned separately for each strategy; runs that differ in these may be compared."""
    return {key for choice in choices_of(results) for key in choice["chosen"] or ()}


def edges_of(choice: Mapping[str, Any]) -> list[str]:
    """Return the chosen values at an edge of what was tried, such as ``local.lr = 0.4 of 0.1, 0.2, 0.4``."""
    scores = [each for each in choice.get("scores", ()) if isinstance(each, Mapping)]
    tried = [(each["values"], _score(each)) for each in scores if isinstance(each.get("values"), Mapping)]
    return edges(choice["chosen"] or {}, tried)


def _score(score: Mapping[str, Any]) -> float:
    found = next((value for key, value in score.items() if str(key).startswith("validation_")), None)
    return float(found) if isinstance(found, int | float) else math.nan


def edges(chosen: Mapping[str, Any], tried: Sequence[tuple[Mapping[str, Any], float]]) -> list[str]:
    """Return the chosen values at an edge of their grid, each with the grid.

    A value does not count if another value of its setting did as well: a grid cannot be too narrow in a direction in
    which nothing changes.

    Parameters
    ----------
    tried
        All combinations of values, each with its score; NaN for one that failed.
    """
    best = [values for values, score in tried if any(values == chosen and is_tie(score, own) for values, own in tried)]
    found = []
    for key, value in chosen.items():
        grid = numbers_of(values.get(key) for values, _ in tried)
        if len(grid) > 1 and value in (grid[0], grid[-1]) and all(values.get(key) == value for values in best):
            found.append(f"{key} = {value:g} of {', '.join(f'{number:g}' for number in grid)}")
    return found


def is_tie(score: float, other: float) -> bool:
    """Tell whether two scores differ by no more than rounding; NaN is like nothing."""
    return math.isclose(score, other, rel_tol=SAME)


def off_centre(values: Mapping[str, Any], tried: Iterable[Mapping[str, Any]]) -> float:
    """Return how far values lie from the middle of their grids: 0 in the middle, 1 at an edge, summed over settings.

    Distances are counted in values of the grid, as its steps may be equal or grow; only numbers have a middle.
    """
    tried, total = list(tried), 0.0
    for key, value in values.items():
        grid = numbers_of(each.get(key) for each in tried)
        if len(grid) > 1 and value in grid:
            total += abs(2 * grid.index(value) / (len(grid) - 1) - 1)
    return total


def numbers_of(tried: Iterable[Any]) -> list[float]:
    """Return the distinct numbers that were tried, in their order."""
    return sorted({each for each in tried if isinstance(each, int | float) and not isinstance(each, bool)})
