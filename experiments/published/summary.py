"""One row per run and model with the numbers that published tables have. Call with folders of runs; prints CSV.

``python -m experiments.published.summary runs/thesis_fedavg > experiments/results/published/thesis_fedavg.csv``
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fedsim.results.differences import distinguishing_settings
from fedsim.results.report import find_runs, read_results
from fedsim.results.result import Result

TENTH = 0.1


def over_clients(values: pd.DataFrame) -> dict[str, float]:
    """Return the accuracy in percent of all test examples together, and the clients' mean, tenths and variance."""
    accuracies = (100 * values["value"]).sort_values()
    tenth = math.ceil(TENTH * len(accuracies))
    return {
        "pooled": (100 * values["value"] * values["n"]).sum() / values["n"].sum(),
        "mean": accuracies.mean(),
        "worst_tenth": accuracies[:tenth].mean(),
        "best_tenth": accuracies[-tenth:].mean(),
        "variance": accuracies.var(ddof=0),
    }


def rows_of(result: Result) -> Iterator[dict[str, float | str | int]]:
    """Yield the last evaluated round of each model, and the maximum over the evaluated rounds, which papers take."""
    server = 100 * result.of("global", server=True).set_index("round")["value"]
    if len(server):
        last, best = int(server.index[-1]), server.max()
        yield {"model": "global on the server", "round": last, "pooled": server[last], "maximum": best}
    for model in ("global", "personalised"):
        by_round = {number: over_clients(rows) for number, rows in result.of(model).groupby("round")}
        last = max(by_round)
        yield {"model": model, "round": last, **by_round[last], "maximum": max(v["pooled"] for v in by_round.values())}


def main(folders: list[Path]) -> None:
    """Print the rows of all runs."""
    results = read_results(find_runs(folders))
    rows = []
    for result, settings in zip(results, distinguishing_settings(results), strict=True):
        named = {"experiment": result.folder.path.parent.name, "strategy": result.strategy} | settings
        rows += [named | {"seed": result.config.seed} | row for row in rows_of(result)]
    print(pd.DataFrame(rows).round(2).to_csv(index=False), end="")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
