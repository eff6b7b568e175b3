"""The rows of the analysis that an expectation applies to."""

from collections.abc import Collection
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from fedsim.analysis.mixing.names import AVERAGE, kind_of
from fedsim.analysis.suite import MEASURES
from fedsim.config.expectation import Expectation
from fedsim.errors import ConfigError
from fedsim.results.result import Result

# Columns that identify a row: the first of these names it, the others select it.
NAMES = ("group", "layer", "order", "first")
KEYS = (
    *NAMES,
    "second",
    "base",
    "other",
    "t",
    "n",
    "n_float32",
    "data",
    "matching",
    "path",
    "round",
    "direction",
    "draws",
)


def measured_rows(expectation: Expectation, result: Result) -> pd.DataFrame:
    """Return the rows of a table, other than the barriers, that an expectation applies to.

    Raises
    ------
    ConfigError
        If there is no such table or column.
    """
    table = result.measured(str(expectation.measure))
    is_products = expectation.measure == "products"
    known = [str(name) for name in table if name not in KEYS and is_numeric_dtype(table[name])]
    if expectation.column not in known:
        # Nothing asks for products: a run records them wherever the server knows them.
        unmeasured = "only LoRA has them, of layers whose trained factors all travel" if is_products else "measure it"
        has = f"no column {expectation.column!r}; it has: {', '.join(known)}" if known else f"no rows; {unmeasured}"
        raise ConfigError(f"{result.folder.path}: the table {expectation.measure!r} has {has}")
    rows = of_kind(table, expectation)
    if expectation.measure == "matching":
        # The first model of a round stays as it is.
        rows = rows[rows["base"] != rows.groupby("round")["base"].transform("first")]
    rows = _of_group(rows, expectation, result)
    if "direction" in rows:
        rows = rows[rows["direction"] == "average"]
    return _between(rows, expectation)


def of_kind(table: pd.DataFrame, expectation: Expectation) -> pd.DataFrame:
    """Return the rows with the expectation's data, matching and path."""
    of_models = expectation.measure == "spectra" and expectation.model != "average"
    # What does not depend on the order of a model's units is measured once, whatever the models were matched by.
    of_any_order = of_models or expectation.measure in [each.name for each in MEASURES.values() if each.any_order]
    for column, value in (("data", expectation.data), ("matching", expectation.matching), ("path", expectation.path)):
        if column in table and not (column == "matching" and of_any_order):
            table = table[table[column] == value]
    return table


def in_group(names: pd.Series, wanted: str, result: Result) -> pd.Series:
    """Return which groups of a run have a name or match a pattern or, for ``layers``, are single layers."""
    if wanted in set(names):
        return names == wanted  # the name of a group may be a pattern, too
    if wanted != "layers":
        return names.map(lambda name: fnmatchcase(name, wanted)).astype(bool)
    others = {"full", *set(result.config.barriers.groups).difference(["layers"], _layers(result))}
    return names.map(lambda name: not kind_of(name) and name not in others).astype(bool)


def _layers(result: Result) -> Collection[str]:
    """Return the names of a run's layers; those that travelled if an earlier version, which recorded none, wrote it."""
    known = result.folder.read_model().get("layers")
    return result.communication.get("layer", ()) if known is None else known


def group_names(rows: pd.DataFrame) -> pd.Series | None:
    """Return the name of the group of layers of each row; None if the table has none."""
    column = next((name for name in NAMES if name in rows), None)
    return None if column is None else rows[column].replace("", "full")  # all layers together, next to pairs of layers


def _of_group(rows: pd.DataFrame, expectation: Expectation, result: Result) -> pd.DataFrame:
    names = group_names(rows)
    if names is None:
        return rows
    if not expectation.names_group and "full" not in set(names):
        return rows
    return rows[in_group(names, expectation.group, result)]


def _between(rows: pd.DataFrame, expectation: Expectation) -> pd.DataFrame:
    """Return the rows that compare models with the average or with each other, at the expectation's t."""
    of_average = expectation.model == "average"
    if "base" in rows:
        rows = rows[(rows["base"] == AVERAGE) == of_average]
    if "other" in rows:
        to_average = expectation.against == "average" and bool((rows["other"] == AVERAGE).any())
        rows = rows[(rows["other"] == AVERAGE) == to_average]
        if "t" in rows and not of_average:
            halfway = expectation.measure in ("connectivity", "exponential") or not to_average
            t = expectation.t if expectation.t is not None else 0.5 if halfway else 1.0
            rows = rows[np.isclose(rows["t"], t)]
    return rows
