"""Table of the barriers between mixtures of experts. Call with a folder of runs and an output folder.

``python -m experiments.experts.summary runs/images experiments/results/experts``
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv
from fedsim.results.reading import find_runs, read_results
from fedsim.results.result import Result

OPTIONS = {"block": 0, "top_k": 0, "num_shared_experts": 0}


def largest_barriers(results: Sequence[Result]) -> pd.DataFrame:
    """Return the largest loss above the chord of the path between the two models, in nats, by run and matching.

    ``loss`` is the mean of the two models' own losses.
    """
    rows = []
    for result in results:
        paths = result.barriers.query("other >= 0")
        options = {name: result.config.model.options.get(name, value) for name, value in OPTIONS.items()}
        for matching, own in paths.groupby("matching", sort=False):
            row = {**options, "seed": result.config.seed, "matching": matching, "barrier": own["loss_swap_ends"].max()}
            rows.append(row | {"loss": own[own["t"].isin((0.0, 1.0))]["loss"].mean()})
    return pd.DataFrame(rows).sort_values([*OPTIONS, "seed"], kind="stable")


def main(runs: Path, out: Path) -> None:
    """Write the barriers as CSV, under the name of the folder of runs."""
    table = largest_barriers(read_results(find_runs([runs])))
    write_csv(out / f"{runs.name}.csv", table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
