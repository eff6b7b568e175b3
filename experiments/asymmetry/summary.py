"""A row for each run, round and way of matching. Call with a folder of runs and an output folder.

``python -m experiments.asymmetry.summary runs/independent experiments/results/asymmetry``
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv
from fedsim.config import Config
from fedsim.results.report import find_runs, read_results
from fedsim.results.result import Result


def model_of(config: Config) -> str:
    """Return the model's name without its module, and what is fixed of it: ``w``, ``sigma`` or nothing."""
    model, asymmetry = config.model.name.rpartition(":")[2], config.model.asymmetry
    if asymmetry.kind == "none":
        return model
    share = f" {asymmetry.fixed:g}" if asymmetry.kind == "w" and not isinstance(asymmetry.fixed, dict) else ""
    return f"{model}, {asymmetry.kind}{share}"


def rows_of(result: Result) -> Iterator[dict[str, object]]:
    """Yield the accuracy of the average and of the clients' models, in percent, and the barriers of all layers.

    Both are on the server's test data, before and after averaging; barriers are minus the mean of the clients' models,
    in nats and points of error. ``distance`` is that between two clients' models.
    """
    table, config = result.barriers, result.config
    whole = table[(table["group"] == "full") & (table["other"] < 0)]
    apart = result.measured("distances")
    apart = apart[(apart["other"] >= 0) & (apart["group"] == "full")]
    for (server_round, matching), found in whole.groupby(["round", "matching"]):
        pairs = apart[(apart["round"] == server_round) & (apart["matching"] == matching)]
        yield {
            "model": model_of(config),
            "initial": config.model.initial,
            "seed": config.seed,
            "round": server_round,
            "matching": matching,
            "average": 100 * (1 - found["error"].mean()),
            "own": 100 * (1 - (found["error"] - found["error_own_base"]).mean()),
            "barrier": found["loss_mean_ends"].mean(),
            "error_barrier": 100 * found["error_mean_ends"].mean(),
            "distance": pairs["distance"].mean(),
        }


def collected(results: Sequence[Result]) -> pd.DataFrame:
    """Return the rows of all runs."""
    rows = pd.DataFrame([row for result in results for row in rows_of(result)])
    return rows.sort_values(["model", "initial", "seed", "round", "matching"], ignore_index=True)


def main(runs: Path, out: Path) -> None:
    """Write every row as CSV."""
    rows = collected(read_results(find_runs([runs])))
    write_csv(out / f"{runs.name}.csv", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
