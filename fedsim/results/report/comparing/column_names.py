"""Columns by the names that users see: keys, names in the CSV, and headings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fedsim.errors import ConfigError
from fedsim.options import suggest
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.rows import Comparison

ALL = "all"
TALLIES = ("better", "equal", "worse")
# Columns of the CSV that say what a line is of. A table has them, or their like, anyway.
OF_LINES = ("method", "strategy", "metric", "at", "seeds")
ALSO = ("half_width", "missing", "interpolated")  # what the CSV has of a measure besides its mean
BASELINE, TARGET = "--baseline STRATEGY", "--target VALUE"
# What must be the case for a measure that not every comparison has.
NEEDS = {
    "difference": BASELINE,
    "pairs": BASELINE,
    "gain_baseline": BASELINE,
    "bytes_to_target": TARGET,
    "passes_to_target": TARGET,
    "at_bytes": "runs that have sent something, or --budget bytes=AMOUNT",
    "at_passes": "runs that have trained, or --budget passes=AMOUNT",
    "p": "two seeds that are paired, or --correct holm",
    "gain_local": "a run of local, with which others are paired",
    "gain_full": "a run of FedAvg, with which others are paired",
    "global": "runs that were evaluated on the server's test data",
    "validation": "runs with partition.validation greater than 0",
    "global_clients": 'runs with "global" in evaluation.models',
    "fine_tuned": 'runs with "fine-tuned" in evaluation.models',
    "unseen": "runs with unseen clients",
    "unseen_fine_tuned": 'runs with unseen clients, and "fine-tuned" in evaluation.models',
    "left_out": "a run with an update that is left out of an average",
    "simulated": "runs with [faults], which simulate seconds",
}


def columns_called(comparison: Comparison, wanted: str) -> list[Column]:
    """Return the columns of some names with commas between them, each once; what every table has is no column.

    Raises
    ------
    ConfigError
        If one is no name of a column, or the column needs what this comparison has not.
    """
    known = names_of(comparison.columns)
    always = [*OF_LINES, *comparison.rows[0].group.settings]
    found: dict[str, Column] = {}
    for name in _split(wanted, [*known, *always]):
        column = _find(name, known)
        if column is not None:
            found[column.key] = column
        elif _folded(name) not in map(_folded, always):
            raise ConfigError(f"--columns: {name!r} {_why(name, [*known, *always])}")
    return list(found.values())


def names_of(columns: Iterable[Column]) -> dict[str, Column]:
    """Return columns by all their names: keys first, then those in the CSV, then headings."""
    every = list(columns)
    found = {column.key: column for column in every}
    for column in every:
        parts = TALLIES if column.kind == "clients" else ()
        for name in (f"{column.key}_{part}" for part in (*parts, *ALSO)):
            found.setdefault(name, column)
    for column in every:
        found.setdefault(column.heading, column)
    return found


def measure_called(comparison: Comparison, name: str) -> Column:
    """Return the measure of a name, which has a mean over the seeds.

    Raises
    ------
    ConfigError
        If there is none, or it is of all seeds together.
    """
    column = _find(name, names_of(comparison.columns))
    measures = [each.key for each in comparison.columns if each.kind not in ("clients", "p")]
    if column is None:
        need = _need(name)
        where = "is a column of 'fedsim compare' and " if need in (BASELINE, TARGET) else ""
        why = f"{where}needs {need}" if need else f"is not a measure of these runs{suggest(name, measures)}"
        raise ConfigError(f"--column {name!r} {why}")
    if name.strip().endswith(tuple(f"_{each}" for each in ALSO)):
        raise ConfigError(
            f"--column {name!r}: give the measure, {column.key!r}; what the CSV has of it besides is in the same cell, "
            "such as its half-width with --spread interval"
        )
    if column.key not in measures:
        raise ConfigError(
            f"--column {name!r} is of all seeds together, and has no mean over them; see it in 'fedsim compare', "
            f"or give one of {', '.join(measures)}"
        )
    return column


def _need(name: str) -> str | None:
    """Return what must be the case for a measure that is not there; None if there is none of that name."""
    return next((NEEDS[each] for each in _keys_of(name) if each in NEEDS), None)


def _why(name: str, known: Iterable[str]) -> str:
    """Return why a name is none of the columns: what it needs, or what else may be meant."""
    if need := _need(name):
        return f"needs {need}"
    listed = [each for each in known if not each.endswith(ALSO) and " " not in each and each == each.lower()]
    return f"is not a column of this table{suggest(name, [*listed, ALL])}"


def _keys_of(name: str) -> Iterator[str]:
    """Yield the keys that a name may be of."""
    folded = _folded(name).replace("-", "_")
    yield folded
    for part in (*TALLIES, *ALSO):
        yield folded.removesuffix(f"_{part}")
    if folded.startswith("vs "):
        yield "difference"


def _find(name: str, known: Mapping[str, Column]) -> Column | None:
    folded = (column for each, column in known.items() if _folded(each) == _folded(name))
    return known.get(name) or next(folded, None)


def _split(wanted: str, known: Sequence[str]) -> Iterator[str]:
    """Yield the names in a text; a heading may have a comma itself."""
    every = set(map(_folded, known))
    parts = wanted.split(",")
    start = 0
    while start < len(parts):
        ends = range(len(parts), start, -1)
        end = next((end for end in ends if _folded(",".join(parts[start:end])) in every), start + 1)
        yield ",".join(parts[start:end]).strip()
        start = end


def _folded(name: str) -> str:
    return " ".join(name.lower().split())
