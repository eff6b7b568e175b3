"""Tables and figures of the experiments. Call with a folder of runs and an output folder.

With a CSV alone, such as ``experiments/results/rebasin/c2m3.csv``, its figures are drawn again next to it.

``python -m experiments.rebasin.summary runs/one_round experiments/results/rebasin``
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_csv, write_figure
from fedsim.results.differences import distinguishing_settings
from fedsim.results.files import write_whole
from fedsim.results.report import find_runs, read_results
from fedsim.results.report.comparing.export import as_markdown
from fedsim.results.report.comparing.statistics import interval
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples
from fedsim.results.result import Result

BARRIER = "loss_mean_ends"
NAMED = {"weights": "matched"}
MATCHING = {"barrier": "unmatched", "barrier, matched": "weights", "barrier, c2m3": "c2m3"}
AXES = {"clients": "models"}
LEAST = {"c2m3": 60}  # accuracy in percent, below which strategies are left to the table


def measured(result: Result) -> pd.DataFrame:
    """Return the accuracy of the server's model, in percent, and the uploaded models' barriers, in nats, by round."""
    splits = ["test", *result.config.evaluation.perturbed]
    accuracies = {
        "accuracy" if split == "test" else split: 100
        * result.of("global", "accuracy", split, server=True).set_index("round")["value"]
        for split in splits
    }
    return pd.DataFrame(accuracies | dict(barriers(result)) | dict(weights(result)))


def barriers(result: Result) -> Iterator[tuple[str, pd.Series]]:
    """Yield the mean over clients of the barrier of all layers, and that of the largest single layer, by round."""
    table = result.barriers[result.barriers["other"] < 0]
    for matching in result.config.barriers.matching:
        rows = table[table["matching"] == matching] if "matching" in table else table
        name = "barrier" if matching == "none" else f"barrier, {NAMED.get(matching, matching)}"
        means = rows.groupby(["round", "group"])[BARRIER].mean().unstack()
        yield name, means["full"]
        if len(means.columns) > 1:
            yield f"{name}, largest layer", means.drop(columns="full").max(axis=1)


def weights(result: Result) -> Iterator[tuple[str, pd.Series]]:
    """Yield the sum of the average's Frobenius norms, and the product of its spectral norms, if they were measured."""
    rows = result.measured("spectra")
    if len(rows):
        by_round = rows[rows["base"] < 0].groupby("round")
        yield "sum of norms", by_round["frobenius_norm"].sum()
        yield "product of spectral norms", by_round["spectral_norm"].prod()


def collected(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each run and round, with the settings that differ between runs."""
    every = []
    for result, settings in zip(results, distinguishing_settings(results), strict=True):
        named = {key: value for key, value in settings.items() if key != "model.hidden"}  # the model's name says it
        named["strategy"] = result.strategy
        every.append(measured(result).reset_index(names="round").assign(seed=result.config.seed, **named))
    return pd.concat(every, ignore_index=True)


def table_of(rows: pd.DataFrame, settings: Sequence[str], values: Sequence[str]) -> Table:
    """Write means over the seeds with their 95 % intervals."""
    lines = []
    for key, group in rows.groupby(list(settings)):
        cells = []
        for value in values:
            found = interval(group[value])
            digits = 2 if "barrier" in value else 1
            cells.append(f"{found.mean:.{digits}f}" + (f" ± {found.half_width:.{digits}f}" if found.has_width else ""))
        lines.append((*map(str, key), str(group["seed"].nunique()), *cells))
    numeric = (*[False] * len(settings), *[True] * (1 + len(values)))
    return Table((*settings, "seeds", *values), numeric, tuple(lines))


def curves(rows: pd.DataFrame, over: str, value: str) -> list[Curve]:
    """Return a curve for each strategy: the mean over the seeds, with their range as its band."""
    drawn = []
    for number, (strategy, group) in enumerate(rows.groupby("strategy")):
        points = group.groupby(over)[value].agg(["mean", "min", "max"])
        drawn.append(Curve(str(strategy), points.set_axis(["value", "low", "high"], axis=1), number))
    return drawn


def main(runs: Path, out: Path) -> None:
    """Write every row as CSV, the first and the last round as Markdown, and curves over what varies, if anything."""
    results = read_results(find_runs([runs]))
    rows = collected(results)
    settings = [key for key in rows.columns if key not in measured(results[0]) and key not in ("round", "seed")]
    values = list(measured(results[0]))
    write_csv(out / f"{runs.name}.csv", rows)
    ends = rows[rows["round"].isin([rows["round"].min(), rows["round"].max()])]
    shown = (["round"] if ends["round"].nunique() > 1 else []) + settings
    write_whole(out / f"{runs.name}.md", as_markdown(table_of(ends, shown, values)))
    draw(out / f"{runs.name}.csv")


def draw(file: Path) -> None:
    """Draw curves over what varies, if anything, from a CSV of all rows."""
    rows = pd.read_csv(file)
    over = next((key for key in ("round", "clients") if rows.get(key, pd.Series([0])).nunique() > 1), None)
    if over is None:
        return
    percent = [value for value in rows if value == "accuracy" or ":" in value]
    nats = [value for value in rows if value.startswith("barrier")]
    lowest = rows.groupby(["strategy", over])["accuracy"].mean().groupby("strategy").min()
    shown = rows[rows["strategy"].map(lowest) >= LEAST.get(file.stem, 0)]
    panels = {"accuracy": {value: curves(shown, over, value) for value in percent}}
    if rows.groupby([over, "seed"])[nats].nunique().max(axis=None) == 1:  # before averaging: of no strategy
        named = rows.rename(columns=MATCHING).melt(
            [over, "seed"], [MATCHING.get(value, value) for value in nats], var_name="strategy"
        )
        panels["barriers"] = {"before averaging": curves(named, over, "value")}
    else:
        panels["barriers"] = {value: curves(rows, over, value) for value in nats}
    for name, unit in (("accuracy", "accuracy (%)"), ("barriers", "barrier (nats)")):
        figure = SmallMultiples(panels[name], AXES.get(over, over), unit).figure()
        for axes in figure.axes if over == "clients" else ():
            axes.set_xticks(rows[over].unique())
        write_figure(file.with_name(f"{file.stem}-{name}"), figure)


if __name__ == "__main__":
    if sys.argv[1].endswith(".csv"):
        draw(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
