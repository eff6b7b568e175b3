"""Walk between the two models of each run, layer by layer. Call with a folder of runs and an output folder.

``python -m experiments.paths.walk runs/walks experiments/results/paths``
"""

import sys
from pathlib import Path

import pandas as pd

import fedsim
from experiments.writing import write_csv, write_figure
from fedsim.analysis import Data, Models, layer_path
from fedsim.federation.federation import federation_of
from fedsim.models.params import state_of
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

# A layer's displacement has a norm of about 10, so that it arrives after some hundreds of ticks.
WAYS = {
    "layer by layer": {"train_steps": 0, "keeps_variance": False},
    "with its variance": {"train_steps": 0, "keeps_variance": True},
    "with training": {"train_steps": 5, "keeps_variance": False},
    "with both": {"train_steps": 5, "keeps_variance": True},
}
STEP, LR, EVERY = 0.1, 0.02, 20
EXAMPLES = 1000  # that a loss is measured on
SHOWN = {"train_loss": "training loss (nats)", "test_loss": "test loss (nats)"}


def walked(run: fedsim.FinishedRun) -> pd.DataFrame:
    """Return a row for each way and tick that is evaluated, with losses and errors on training and test data."""
    ends = [run.model(client=client) for client in (0, 1)]
    models = Models(ends[0], [state_of(each) for each in ends], seed=run.config.seed)
    data = federation_of(run.config).data
    train = Data(*data.client(0).train)  # both have the same
    measured = {"train": Data(*data.train_sample(EXAMPLES)), "test": Data(*data.test(EXAMPLES))}
    tables = []
    for way, options in WAYS.items():
        # Both walks are the same: what is drawn depends on the models' seed alone.
        found = {
            part: layer_path(models, each, train=train, step=STEP, lr=LR, every=EVERY, **options)
            for part, each in measured.items()
        }
        table = found["train"][["tick", "layer", "arrived", "distance"]].copy()
        for part, each in found.items():
            table[[f"{part}_loss", f"{part}_error"]] = each[["loss", "error"]]
        table["walked"] = 1 - table["distance"] / table["distance"].iloc[0]
        tables.append(table.assign(way=way, seed=run.config.seed))
    return pd.concat(tables, ignore_index=True)


def curves(rows: pd.DataFrame, value: str) -> list[Curve]:
    """Return a curve for each way, over the share of the distance walked: the mean and the range of the seeds."""
    drawn = []
    for number, (way, group) in enumerate(rows.groupby("way", sort=False)):
        points = group.groupby(group["walked"].clip(lower=0).round(1))[value].agg(["mean", "min", "max"])
        drawn.append(Curve(str(way), points.set_axis(["value", "low", "high"], axis=1), number))
    return drawn


def peaks(rows: pd.DataFrame, runs: fedsim.Runs) -> pd.DataFrame:
    """Return by way and seed the largest losses and errors, and those of the two models and halfway between them."""
    values = ["train_loss", "train_error", "test_loss", "test_error"]
    walks = rows[rows["way"] == "with both"].groupby("seed", sort=False)
    ends = [walks.nth(tick).assign(way=way)[["way", "seed", *values]] for way, tick in (("start", 0), ("end", -1))]
    straight = []
    for run in runs:
        table = run.barriers.query("base == 0 and other == 1 and t == 0.5 and group == 'full'").set_index("data")
        found = {
            f"{part}_{metric}": table.loc[name, metric]
            for part, name in (("train", "train"), ("test", "server"))
            for metric in ("loss", "error")
        }
        straight.append({"way": "straight line, halfway", "seed": run.config.seed} | found)
    largest = rows.groupby(["way", "seed"], sort=False)[[*values, "tick"]].max().reset_index()
    return pd.concat([*ends, pd.DataFrame(straight), largest], ignore_index=True)


def main(runs: Path, out: Path) -> None:
    """Write the walks and their peaks as CSV, and the figure."""
    found = fedsim.load(runs)
    rows = pd.concat([walked(run) for run in found], ignore_index=True)
    write_csv(out / "walks.csv", rows)
    write_csv(out / "peaks.csv", peaks(rows, found))
    panels = {title: curves(rows, value) for value, title in SHOWN.items()}
    picture = SmallMultiples(panels, "share of the distance walked", "", log_y=True)
    write_figure(out / "walks", picture.figure())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
