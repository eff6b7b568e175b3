"""Tables of the experiments with transformers. Call with a folder of runs and an output folder.

``python -m experiments.transformers.summary runs/vit experiments/results/transformers``
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv
from fedsim.results.differences import distinguishing_settings
from fedsim.results.report import find_runs, read_results
from fedsim.results.result import Result


def of_pair(result: Result) -> pd.DataFrame:
    """Return the barrier and the loss of the mixes of two models, in nats, and their error, by matching and t."""
    rows = result.barriers.query("base == 0 and other == 1 and group == 'full'")
    chosen = rows[["matching", "t", "loss_mean_ends", "loss", "error"]]
    return chosen.rename(columns={"loss_mean_ends": "barrier"}).reset_index(drop=True)


def of_server(result: Result) -> pd.DataFrame:
    """Return the accuracy of the server's model in percent, by round."""
    rows = result.of("global", "accuracy", "test", server=True)
    return pd.DataFrame({"round": rows["round"], "accuracy": 100 * rows["value"]}).reset_index(drop=True)


def collected(results: Sequence[Result]) -> pd.DataFrame:
    """Return the rows of all runs, with their seeds, their methods and the settings that differ between runs."""
    every = []
    for result, settings in zip(results, distinguishing_settings(results), strict=True):
        rows = of_pair(result) if len(result.barriers) else of_server(result)
        every.append(rows.assign(seed=result.config.seed, strategy=result.strategy, **settings))
    return pd.concat(every, ignore_index=True)


def main(runs: Path, out: Path) -> None:
    """Write every row as CSV."""
    rows = collected(read_results(find_runs([runs])))
    write_csv(out / f"{runs.name}.csv", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
