"""Table of the barriers in a folder of runs. Call with it and an output folder.

``python -m experiments.llmc.summary runs/data_order experiments/results/llmc``
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv
from fedsim.results.differences import distinguishing_settings
from fedsim.results.reading import find_runs, read_results
from fedsim.results.result import Result

BARRIERS = ["loss_mean_ends", "error_mean_ends"]


def last_barriers(results: Sequence[Result]) -> pd.DataFrame:
    """Return the barriers of the last round's average on training data, mean over the clients, by group, run and seed.

    ``loss_mean_ends`` is in nats, ``error_mean_ends`` a share of the examples.
    """
    tables = []
    for result, settings in zip(results, distinguishing_settings(results), strict=True):
        rows = result.barriers
        last = rows[(rows["round"] == rows["round"].max()) & (rows["other"] < 0) & (rows["data"] == "train")]
        means = last.groupby("group", sort=False)[BARRIERS].mean().reset_index()
        tables.append(means.assign(seed=result.config.seed, **settings))
    table = pd.concat(tables, ignore_index=True)
    return table[[*(column for column in table.columns if column not in BARRIERS), *BARRIERS]]


def main(runs: Path, out: Path) -> None:
    """Write the barriers as CSV, under the name of the folder of runs."""
    table = last_barriers(read_results(find_runs([runs])))
    write_csv(out / f"{runs.name}.csv", table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
