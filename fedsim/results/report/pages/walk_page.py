"""The page about a walk from one checkpoint to another."""

from pathlib import Path

import pandas as pd

from fedsim.results.report.comparing.export import as_latex, as_markdown
from fedsim.results.report.drawing.walk import LAYER_WISE, LINEAR, METRICS, stopped_after, walk_curves, walk_table
from fedsim.results.report.pages.html import unchecked, write_page
from fedsim.results.report.pages.pictured import pictured

TEXT = (
    "On the walk, one layer after the other moves to the end's, and layers that have not arrived are trained on the "
    "way, unless no steps were asked for; linear interpolation moves all layers at once, without training."
)


@unchecked
def write_walk_page(
    out: Path, names: tuple[str, str], rows: pd.DataFrame, *, subtitle: str, settings: str, command: str = ""
) -> Path:
    """Write the page with its figures as PDF and PNG into the folder ``out``; return its path.

    Parameters
    ----------
    names
        Names of the start and the end.
    rows
        Table of `fedsim.experiment.saved_models.walk.walk_between`.
    settings
        All settings, as text.
    command
        The command that measured this, if there was one.
    """
    table = walk_table(rows)
    content = {
        "title": f"Walk from {names[0]} to {names[1]}",
        "subtitle": subtitle,
        "verdict": [_sentence(rows)],
        "tables": [
            {"title": "Points on the way", "table": table, "copies": [("latex", "LaTeX"), ("markdown", "Markdown")]}
        ],
        "details": [("Settings", settings)],
        "copied": [("This walk again:", command)] if command else [],
    }
    texts = {"latex": as_latex(table), "markdown": as_markdown(table)}
    sections = [
        pictured(f"path-{metric}", f"{metric.capitalize()} along the way", text, walk_curves(rows, metric))
        for metric, text in zip(METRICS, (TEXT, ""), strict=True)
    ]
    return write_page(out, content, sections, {"texts": texts}, export=True)


def _sentence(rows: pd.DataFrame) -> str:
    """Return how high the walk and linear interpolation rise above the higher end."""
    walk, line = (rows[rows["curve"] == curve]["loss"] for curve in (LAYER_WISE, LINEAR))
    ends = line.iloc[[0, -1]].max()
    steps = stopped_after(rows)
    return (
        f"The highest loss that was measured on the walk is {walk.max():.3g}, by linear interpolation "
        f"{line.max():.3g}; the higher end has {ends:.3g}."
        + (f" The walk stopped after {steps:,} layer steps, before the end." if steps else "")
    )
