"""Draws the pictures of docs/, good and bad examples from real runs: ``make pictures``."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

import fedsim
from fedsim.results.measured import UNMATCHED, by_kind
from fedsim.results.report import find_runs, read_results
from fedsim.results.report.drawing import barriers, companions, connectivity
from fedsim.results.report.drawing.paper.figures import paper_figure
from fedsim.results.report.drawing.partition import partition
from fedsim.results.report.drawing.style import save
from fedsim.results.result import Result

HERE = Path(__file__).parent
COLOURS = 200  # of a picture, which keeps it below 100 kB
LIKE, UNLIKE = 100.0, 0.1  # alphas: clients with the same classes, and with few classes each
STRATEGIES = [{"name": "full"}, {"name": "layer_set", "shared": "body"}, {"name": "local"}, {"name": "scaffold"}]
BASE: dict[str, Any] = {
    "rounds": 12,
    "clients": 8,
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "local": {"epochs": 2, "batch_size": 16, "lr": 0.1},
    "partition": {"scheme": "dirichlet", "alpha": LIKE},
}
MEASURED = {
    "every": 3,
    "on": ["clients", "server"],
    "pairs": 4,
    "ts": [0.0, 0.25, 0.5, 0.75, 1.0],
    "measures": ["distances", "connectivity"],
    "examples": 355,
}


def main(out: str) -> None:
    """Run what is missing in a folder, and draw all pictures."""
    study = results(out, "study", barriers={"every": 0}, sweep=swept(STRATEGIES, seed=[0, 1, 2]))
    measured = results(out, "measured", barriers=MEASURED, sweep=swept(STRATEGIES[:2]))
    [apart] = results(
        out,
        "apart",
        rounds=6,
        model={"name": "mlp", "initial": "own"},
        strategy={"name": "local"},
        barriers=MEASURED,
    )
    unlike, like = (
        next(each for each in measured if each.strategy == "FedAvg" and each.config.partition.alpha == alpha)
        for alpha in (UNLIKE, LIKE)
    )
    figures = {
        "curves": paper(study, "curves"),
        "traffic": paper(study, "curves", x="bytes"),
        "clients": paper(study, "clients"),
        "barriers": paper(measured, "barriers"),
        "barriers-server": barriers.maps(of_pairs(unlike, pairs=False), "loss", pairs=False).figure(),
        "strip": paper(measured, "strip"),
        "paths-good": barriers.paths(of_pairs(like), "loss").figure(),
        "paths-bad": barriers.paths(of_pairs(apart), "loss").figure(),
        "distances-good": companions.cosines(table(like, "distances")).figure(),
        "distances-bad": companions.cosines(table(unlike, "distances")).figure(),
        "features-good": connectivity.connectivity(table(like, "connectivity")).figure(),
        "features-bad": connectivity.connectivity(table(apart, "connectivity")).figure(),
        "partition-good": partition(like.heterogeneity),
        "partition-bad": partition(unlike.heterogeneity),
    }
    for name, figure in figures.items():
        write(figure, name)


def results(out: str, name: str, **changes: Any) -> list[Result]:
    """Return the results of an experiment, which runs where it has not yet."""
    runs = fedsim.run(BASE | changes, out=out, name=name)
    return read_results(find_runs([run.path for run in runs]))


def swept(strategies: list[dict[str, str]], **more: Any) -> Mapping[str, Any]:
    """Return a sweep over both kinds of partitions."""
    return {"partition.alpha": [UNLIKE, LIKE], "strategy": strategies, **more}


def paper(runs: list[Result], name: str, **options: Any) -> Figure:
    """Return a figure of `fedsim figure`, as wide as a page."""
    figure, _ = paper_figure(name, runs, width="page", **options)
    return figure


def of_pairs(result: Result, *, pairs: bool = True) -> Any:
    """Return the barriers on the server's data, between clients or against the average."""
    rows = by_kind(result.barriers)["server", UNMATCHED]
    return rows[(rows["other"] >= 0) == pairs]


def table(result: Result, name: str) -> Any:
    """Return what was measured of each two clients in the last round, or of each client in all rounds."""
    rows = next(iter(by_kind(result.measured(name)).values()))
    if name == "connectivity":
        return connectivity.halfway(rows[rows["other"] >= 0])
    return rows[rows["other"] < 0].dropna(axis="columns", how="all")


def write(figure: Figure, name: str) -> None:
    """Write a picture with few colours."""
    picture = Image.open(io.BytesIO(save(figure, "png"))).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
