"""Tables of the analysis, one file for each measured round."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.analysis.mixing.names import FACTORS
from fedsim.analysis.suite import MEASURES
from fedsim.errors import ConfigError
from fedsim.reading import check_file
from fedsim.results.files import by_round
from fedsim.shortening import from_to

if TYPE_CHECKING:  # a worker that reads no table does not wait for pandas
    import pandas as pd

UNMATCHED, SQUARED = "none", "squared"
# Columns of which files have none where all rows have this value.
DEFAULTS = {"data": "server", "matching": UNMATCHED, "path": FACTORS}
CLIENTS = "clients"
CLUSTER = "cluster"  # of a gate that measures several averages: the place of one among them
# The kinds of tables: barriers, those that decide what a strategy averages, errors of products, and other measures.
TABLES = ("barriers", "gate", "products", "matching", *MEASURES)
DATA = {
    "server": "the server's test examples",
    "train": "the union of the clients' training examples",
    CLIENTS: "each client's own test examples",
}


def with_matching(table: "pd.DataFrame", way: str, ways: Sequence[str]) -> "pd.DataFrame":
    """Return a table as it is written: with the column ``matching``, unless models are never matched."""
    return table if tuple(ways) == (UNMATCHED,) else table.assign(matching=way)


def with_error_unit(table: "pd.DataFrame", *, squared: bool) -> "pd.DataFrame":
    """Return a table as it is written: with the column ``error_unit`` where errors are squared, and not shares."""
    return table.assign(error_unit=SQUARED) if squared and any(map(_is_error, table)) else table


def _is_error(column: object) -> bool:
    return str(column).startswith("error")


def scale_of(metric: str, rows: "pd.DataFrame") -> tuple[float, str]:
    """Return by what figures multiply ``loss`` or ``error``, and the unit that it has then."""
    if metric == "loss":
        return 1.0, "per example" if "error_unit" in rows else "nats"
    return (1.0, "squared error") if "error_unit" in rows else (100.0, "percentage points")


def read_measured(folder: Path) -> "pd.DataFrame":
    """Read the tables of all rounds in a folder, with a column ``round``; empty if there are none.

    The column ``data`` names the data of a row, by default ``server``; ``matching`` is what the models had been matched
    by, ``none`` in files without that column (`with_matching`); ``path`` is how models were mixed, by default
    ``factors``.

    Raises
    ------
    ConfigError
        If a file is damaged.
    """
    import pandas as pd

    frames = []
    for server_round, path in by_round(folder, ".parquet").items():
        try:
            check_file(path)
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{path} is damaged ({reason}); remove the run's folder and run it again") from error
        for column, value in DEFAULTS.items():
            if column not in frame:
                frame[column] = value
        frames.append(frame.assign(round=server_round))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def examples(rows: "pd.DataFrame", data: str) -> str:
    """Return how many examples of which data were used, such as ``500 of the server's test examples``.

    If the table says that they were stratified, or that models were evaluated in bfloat16, so does the text.
    """
    is_stratified = "sampling" in rows and rows["sampling"].str.startswith("stratified", na=False).all()
    how = ", stratified by class" if is_stratified else ""
    coarse = f", {precisions}" if (precisions := two_precisions(rows)) else ""
    return f"{from_to(rows['n'].dropna())} of {DATA.get(data, data)}{how}{coarse}"


def two_precisions(rows: "pd.DataFrame") -> str:
    """Return that models were evaluated in bfloat16, and on how many examples in float32 too; empty if none was."""
    if "n_float32" not in rows or not (rows["n_float32"] < rows["n"]).any():
        return ""
    return f"evaluated in bfloat16, corrected by float32 on {from_to(rows['n_float32'].dropna())} of these"


class Kind(NamedTuple):
    """How rows were measured: on which data, after which matching, and along which path."""

    data: str
    matching: str
    path: str


def by_kind(table: "pd.DataFrame") -> "dict[Kind, pd.DataFrame]":
    """Return the rows of each kind: on the clients' own data first, then in their order."""
    if table.empty:
        return {}
    kinds = {Kind(*map(str, kind)): rows for kind, rows in table.groupby(list(Kind._fields), sort=False)}
    return dict(sorted(kinds.items(), key=lambda kind: kind[0].data != CLIENTS))


def mean_gate_barriers(gate: "pd.DataFrame", by: Sequence[str]) -> dict[tuple[Any, ...], float]:
    """Return the barriers that a strategy measured, as means over the clients, weighted by training examples.

    Parameters
    ----------
    gate
        Columns ``barrier`` and ``weight``, and those that are grouped ``by``, whose values are the keys of the result.
    """
    return {
        key: float(np.average(rows["barrier"], weights=rows["weight"]))
        for key, rows in gate.groupby(list(by))
        if isinstance(key, tuple)
    }
