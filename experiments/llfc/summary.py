"""Table and figure: features by layer and way. Call with a folder of runs and an output folder.

The folder's name names the files: ``python -m experiments.llfc.summary runs/mlp experiments/results/llfc``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv, write_figure
from fedsim.results.report import find_runs, read_results
from fedsim.results.report.drawing.layer_curves import LayerCurves, LayerPanel, spread
from fedsim.results.report.drawing.small_multiples import Curve
from fedsim.results.result import Result

WAYS = {"none": "independent", "weights": "matched by weights", "activations": "matched by activations"}
COLUMNS = ("cosine", "cosine_ends", "ratio", "coefficient", "additivity", "commutativity", "feature_distance")


def way_of(result: Result, matching: str) -> str | None:
    """Name the origin of two models; None for spawned ones that are matched too."""
    spawned = result.config.model.initial == "shared" or "spawn_round" in result.config.strategy.options
    if spawned:
        return "spawned" if matching == "none" else None
    return WAYS[matching]


def measured(results: Sequence[Result], name: str) -> pd.DataFrame:
    """Return the measurements between the two models in the last round of all runs, with the way and the seed."""
    tables = []
    for result in results:
        rows = result.measured(name)
        rows = rows[(rows["other"] >= 0) & (rows["round"] == rows["round"].max())]
        ways = rows["matching"].map(lambda matching, result=result: way_of(result, matching))
        tables.append(rows.assign(way=ways, seed=result.config.seed)[ways.notna()])
    return pd.concat(tables, ignore_index=True)


def curves(rows: pd.DataFrame, values: pd.Series) -> list[Curve]:
    """Return a curve over layers for each way, with the range over seeds as its band."""
    ways = ["spawned", *WAYS.values()]
    return [Curve(way, spread(rows[rows["way"] == way], values[rows["way"] == way]), k) for k, way in enumerate(ways)]


def main(runs: Path, out: Path) -> None:
    """Write means over the seeds as CSV, and the figure."""
    results = read_results(find_runs([runs]))
    features, stitched = measured(results, "connectivity"), measured(results, "stitching")
    table = features.groupby(["way", "layer"], sort=False)[list(COLUMNS)].mean()
    errors = stitched.groupby(["way", "layer"], sort=False)[["error", "error_ends"]].mean()
    table = table.join(errors.add_prefix("stitching_")).assign(seeds=features["seed"].nunique())
    write_csv(out / f"{runs.name}.csv", table.reset_index())
    gap, bent = 1 - features["cosine"], features["additivity"]
    exchanged = features["commutativity"] / features["feature_distance"]
    lost = 100 * (stitched["error"] - stitched["error_ends"])
    panels = [
        LayerPanel("1 - cosine of the average's features and the average of features", curves(features, gap), log=True),
        LayerPanel("commutativity over the distance of the layer's inputs", curves(features, exchanged), True, 1.0),
        LayerPanel("additivity of the activation: relative squared distance", curves(features, bent), log=True),
        LayerPanel(
            "error of models stitched here, minus the two models' own (points)", curves(stitched, lost), mark=0.0
        ),
    ]
    write_figure(out / runs.name, LayerCurves(panels).figure())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
