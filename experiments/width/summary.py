"""Table and figure of barriers, overlap and ranks. Call with a folder of runs and an output folder.

With a CSV alone, such as ``experiments/results/width/width.csv``, its figure is drawn again next to it.

``python -m experiments.width.summary runs/width experiments/results/width``
"""

import sys
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv, write_figure
from fedsim.results.report import find_runs, read_results
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples
from fedsim.results.result import Result

SHOWN = {
    "barrier": "barrier halfway (nats)",
    "barrier_all": "calibrated barrier (nats)",
    "cosine": "cosine, mean over the layers",
    "reciprocal": "norms' ratio, fc2 to fc4",
}


def measured(result: Result) -> dict[str, float]:
    """Return what is measured halfway between the two models of a run, and of the models themselves."""
    between = {name: result.measured(name).query("base == 0 and other == 1") for name in ("calibrated", "exponential")}
    whole = between["calibrated"].query("t == 0.5").iloc[0]
    layers = between["exponential"].query("t == 0.5").set_index("layer")
    path = result.barriers.query("base == 0 and other == 1 and group == 'full'").set_index("t")
    ranks = result.measured("spectra").query("base >= 0").groupby("layer")["stable_rank"].mean()
    return {
        "width": result.config.model.options.get("width", 128),
        "weight_decay": result.config.local.weight_decay,
        "seed": result.config.seed,
        "accuracy": 100 - 50 * (path.loc[0.0, "error"] + path.loc[1.0, "error"]),
        **{name: whole[name] for name in ("barrier", "barrier_merged", "barrier_all", "beta")},
        "error_barrier": 100 * path.loc[0.5, "error_mean_ends"],
        "cosine": layers["exponential"].mean(),
        "cosine_shuffled": layers["exponential_shuffled"].mean(),
        "control": layers["exponential_control"].iloc[0],
        "reciprocal": layers["reciprocal"].dropna().mean(),
        **{f"cosine_{layer}": value for layer, value in layers["exponential"].items()},
        "stable_rank_fc2": ranks["fc2"],
    }


def curves(rows: pd.DataFrame, value: str) -> list[Curve]:
    """Return a curve over the widths for each weight decay, with the range over the seeds as its band."""
    drawn = []
    for number, (decay, group) in enumerate(rows.groupby("weight_decay")):
        points = group.groupby("width")[value].agg(["mean", "min", "max"])
        drawn.append(Curve(f"weight decay {decay:g}", points.set_axis(["value", "low", "high"], axis=1), number))
    return drawn


def main(runs: Path, out: Path) -> None:
    """Write a row for each run as CSV, and the figure."""
    rows = pd.DataFrame([measured(result) for result in read_results(find_runs([runs]))])
    rows = rows.sort_values(["width", "weight_decay", "seed"])
    write_csv(out / f"{runs.name}.csv", rows)
    draw(out / f"{runs.name}.csv")


def draw(file: Path) -> None:
    """Draw the figure from a CSV of all rows; each panel has its own scale, and the cosine its control."""
    rows = pd.read_csv(file)
    panels = {title: curves(rows, value) for value, title in SHOWN.items()}
    figure = SmallMultiples(panels, "units of a hidden layer", "").figure()
    for axes, value in zip(figure.axes, SHOWN, strict=True):
        widths = rows["width"].unique()
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths], minor=False)
        axes.margins(y=0.12)
        axes.autoscale(axis="y")
        if value == "cosine":
            control = rows["control"].iloc[0]
            axes.axhline(control, color="black", linewidth=0.8)
            above, at = (0, 2), (widths[0], control)
            axes.annotate("no structure", at, xytext=above, textcoords="offset points", va="bottom", fontsize=7)
    write_figure(file.with_suffix(""), figure)


if __name__ == "__main__":
    if sys.argv[1].endswith(".csv"):
        draw(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
