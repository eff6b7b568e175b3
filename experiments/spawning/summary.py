"""A row for each run: the two models, their midpoint and its barrier. Call with a folder of runs and an output folder.

``python -m experiments.spawning.summary runs/butterfly experiments/results/spawning``
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv
from fedsim.results.report import find_runs, read_results
from fedsim.results.result import Result


def settings_of(result: Result) -> dict[str, object]:
    """Return what the files of this folder vary: the model, its training, and how copies part."""
    config, options = result.config, result.config.strategy.options
    kind = {True: "shared filters", False: "unshared filters", None: ""}[config.model.options.get("shared")]
    model = kind or f"{1 + len(config.model.options['hidden'])} layers"
    training = {"optimizer": config.local.optimizer, "lr": config.local.lr}
    spawning = {key: options.get(key) for key in ("steps", "noise", "noise_kind")}
    return {"model": model, **training, **spawning, "seed": config.seed}


def measured(result: Result) -> dict[str, float]:
    """Return accuracies on the server's test data in percent, and barriers in points of error and in nats."""
    table = result.barriers
    pairs = table[(table["group"] == "full") & (table["other"] >= 0)]
    between, ends = pairs[pairs["t"] == 0.5], pairs[pairs["t"].isin([0.0, 1.0])]
    return {
        "own": 100 * (1 - ends["error"].mean()),
        "average": 100 * (1 - between["error"].mean()),
        "error_barrier": 100 * between["error_mean_ends"].mean(),
        "barrier": between["loss_mean_ends"].mean(),
    }


def collected(results: Sequence[Result]) -> pd.DataFrame:
    """Return the rows of all runs."""
    rows = pd.DataFrame([settings_of(result) | measured(result) for result in results])
    kept = [key for key in rows if key in measured(results[0]) or rows[key].nunique(dropna=False) > 1]
    return rows[kept].sort_values(kept[: kept.index("seed") + 1], ignore_index=True)


def main(runs: Path, out: Path) -> None:
    """Write every row as CSV."""
    rows = collected(read_results(find_runs([runs])))
    write_csv(out / f"{runs.name}.csv", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
