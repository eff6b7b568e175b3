"""Tables of the experiments. Call with the runs of methods, or of single layers, and an output folder.

``python -m experiments.adapters.summary runs/sentiment experiments/results/adapters`` writes the aggregation errors of
methods, and what predicting each client's largest class would score; with ``runs/layers``, what sharing each adapter
alone gains, next to its barrier before.
"""

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv
from fedsim.results.report import find_runs, read_results
from fedsim.results.result import Result

BARRIER = "loss_own_base"  # of a client's model with one adapter from the average, minus that of the model itself


def scores(result: Result) -> pd.Series:
    """Return the means over clients of the personalised models' loss and accuracy in the last round."""
    values = {}
    for metric in ("loss", "accuracy"):
        rows = result.of("personalised", metric, "test")
        values[metric] = rows.loc[rows["round"] == rows["round"].max(), "value"].mean()
    return pd.Series(values)


def gains_of_layers(results: Sequence[Result]) -> pd.DataFrame:
    """Return, for each seed and adapter, its barrier between clients that train alone, and the gain of sharing it."""
    rows = []
    for alone in (result for result in results if result.config.strategy.name == "local"):
        barriers = alone.barriers[alone.barriers["other"] < 0].groupby("group", sort=False)[BARRIER].mean()
        for result in results:
            if result is alone or result.config.seed != alone.config.seed:
                continue
            pattern = str(result.config.strategy.options["shared"])
            [layer] = [group for group in barriers.index if fnmatchcase(f"{group}.lora_A", pattern)]
            change = scores(result) - scores(alone)
            name = ".".join(layer.split(".")[-4::3])
            row = {"seed": alone.config.seed, "layer": name, "barrier": barriers[layer]}
            rows.append(row | {"loss": change["loss"], "accuracy": change["accuracy"]})
    return pd.DataFrame(rows).sort_values(["seed", "layer"])


def aggregation_errors(results: Sequence[Result]) -> pd.DataFrame:
    """Return the mean over layers of each run's aggregation error in its last round."""
    rows = []
    for result in results:
        if len(errors := result.measured("products")):
            last = errors[errors["round"] == errors["round"].max()]["aggregation_error"]
            row = {"partition": result.config.partition.scheme, "method": result.strategy, "seed": result.config.seed}
            rows.append(row | {"error": last.mean(), "largest": last.max()})
    return pd.DataFrame(rows).sort_values(["partition", "method", "seed"])


def largest_classes(results: Sequence[Result]) -> pd.DataFrame:
    """Return the mean over clients of the share of their largest class, of each partition and seed."""
    rows = {}
    for result in results:
        partition, seed = result.config.partition, result.config.seed
        key = partition.scheme, partition.options.get("alpha"), seed
        rows[key] = result.heterogeneity.counts.largest_shares().mean()
    return pd.DataFrame(
        [(*key, share) for key, share in sorted(rows.items())], columns=["partition", "alpha", "seed", "share"]
    )


def main(runs: Path, out: Path) -> None:
    """Write a table named after the folder of the runs."""
    results = read_results(find_runs([runs]))
    if any(len(result.barriers) for result in results):
        table, name = gains_of_layers(results), runs.name
    else:
        table, name = aggregation_errors(results), f"{runs.name}_errors"
        _write(out / f"{runs.name}_classes.csv", largest_classes(results))
    _write(out / f"{name}.csv", table)


def _write(path: Path, table: pd.DataFrame) -> None:
    write_csv(path, table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
