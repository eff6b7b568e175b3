"""Table and figures of the study: methods by heterogeneity. Call with the runs' folder and an output folder.

With an output folder alone, the figure is drawn again from its ``study.csv``.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.writing import write_figure
from fedsim.config.choices import CATALOGUES
from fedsim.config.tables import StrategyConfig
from fedsim.results.files import write_whole
from fedsim.results.report import find_runs, read_results
from fedsim.results.report.comparing.comparison import Row, compare
from fedsim.results.report.comparing.export import OVER_SEEDS, as_csv, as_latex, as_markdown
from fedsim.results.report.comparing.statistics import Interval
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.heat_maps import HeatMaps, Quantity

MEASURES = {"personalised": "as received", "fine_tuned": "after fine-tuning"}
CLASSES = "2 classes"  # the study's only partition without alpha
POINTS = Quantity("accuracy minus that of local training, points", 100)


def kind_of(row: Row) -> str:
    """Name a row's heterogeneity."""
    partition = row.group.members[0].config.partition
    if partition.scheme == "shards":
        return f"{partition.options['classes_per_client']} classes"
    return f"alpha {partition.options['alpha']:g}"


def by_kind(rows: Sequence[Row], measure: str) -> dict[str, dict[str, Interval]]:
    """Return a measure by strategy and heterogeneity."""
    found: dict[str, dict[str, Interval]] = {}
    for row in rows:
        found.setdefault(row.group.members[0].strategy, {})[kind_of(row)] = row.values[measure]
    return found


def percent(value: Interval) -> str:
    """Write an accuracy with its interval, if there are several seeds."""
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.half_width:.1f}" if value.has_width else "")


def table_of(values: Mapping[str, Mapping[str, Interval]], kinds: Sequence[str], seeds: int) -> Table:
    """Write accuracies as text, the best first by their mean over all kinds."""
    ranked = sorted(values, key=lambda name: -sum(values[name][kind].mean for kind in kinds))
    rows = tuple((name, str(seeds), *(percent(values[name][kind]) for kind in kinds)) for name in ranked)
    return Table(("strategy", "seeds", *kinds), (False, *[True] * (1 + len(kinds))), rows)


def literature(name: str) -> str:
    """Return the name in the literature of a strategy as tables write it, such as ``layer_set(shared=body)``."""
    entry, _, options = name.rstrip(")").partition("(")
    given = dict(option.split("=", 1) for option in options.split(", ") if option)
    return CATALOGUES["strategies"].label(StrategyConfig.model_validate({"name": entry, **given}), given)


def draw(out: Path) -> None:
    """Draw the gain of each strategy over local training measured in the same way, the best first, from the CSV."""
    rows = pd.read_csv(out / "study.csv", na_values="-")
    kinds = rows["partition.alpha"].map(lambda alpha: CLASSES if pd.isna(alpha) else f"alpha {alpha:g}")
    maps: dict[str, pd.DataFrame] = {}
    order = pd.Index([])
    for measure, title in MEASURES.items():
        values = rows.assign(kind=kinds).pivot(index="strategy", columns="kind", values=measure)[kinds.unique()]
        order = order if len(order) else values.mean(axis=1).sort_values(ascending=False, kind="stable").index
        maps[title] = (values - values.loc["local"]).loc[order].rename(index=literature)
    write_figure(out / "gains", HeatMaps(maps, POINTS, across=2, columns="clients' data").figure())


def main(runs: Path, out: Path) -> None:
    """Write all values as CSV, accuracies as Markdown and LaTeX."""
    comparison = compare(read_results(find_runs([runs])))
    kinds = list(dict.fromkeys(kind_of(row) for row in comparison.rows))
    write_whole(out / "study.csv", as_csv(comparison, comparison.columns))
    for measure in MEASURES:
        table = table_of(by_kind(comparison.rows, measure), kinds, comparison.rows[0].group.seeds)
        write_whole(out / f"{measure}.md", as_markdown(table))
        write_whole(out / f"{measure}.tex", as_latex(table, OVER_SEEDS))


if __name__ == "__main__":
    *runs, folder = map(Path, sys.argv[1:])
    if runs:
        main(runs[0], folder)
    draw(folder)
