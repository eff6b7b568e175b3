"""The page about barriers between checkpoints, without a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedsim.results.measured import scale_of
from fedsim.results.report.charts.peaks import peaks_chart
from fedsim.results.report.comparing.export import as_latex, as_markdown
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.checkpoints import (
    barriers_table,
    checkpoint_pictures,
    ends_of,
    feature_pictures,
    features_table,
    matching_table,
    peaks_table,
    reference_of,
)
from fedsim.results.report.drawing.width import calibrated_table
from fedsim.results.report.pages.citation import BARRIERS
from fedsim.results.report.pages.feature_sections import PREDICTION_TEXT
from fedsim.results.report.pages.how_to_read import PEAKS
from fedsim.results.report.pages.html import unchecked, write_page
from fedsim.results.report.pages.pictured import pictured
from fedsim.results.report.pages.section import Section

TITLES = {
    "barriers-loss": "Loss barriers at each t",
    "barriers-error": "Error barriers at each t",
    "paths-loss": "Loss along the paths",
    "paths-error": "Error along the paths",
    "prediction": "Barriers predicted from the ends",
    "exponential": "Features of wide networks",
    "calibrated": "Calibrated barriers",
}
TEXTS = {"prediction": f"{PREDICTION_TEXT}. Columns: the model that takes the layer, and the one that has it."}


@unchecked
def write_checkpoints(
    out: Path,
    names: Sequence[str],
    barriers: pd.DataFrame,
    peaks: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    files: Sequence[str],
    subtitle: str,
    settings: str,
    command: str = "",
) -> Path:
    """Write the page with its figures as PDF and PNG into the folder ``out``; return its path.

    Parameters
    ----------
    peaks
        Table of `fedsim.analysis.peaks` of the barriers.
    others
        Tables of other measures, by name.
    files
        Names of the files, of which the names may be short forms.
    settings
        All settings, as text.
    command
        The command that measured this, if there was one.
    """
    largest = peaks_table(peaks, names)
    tables = [
        {"title": "Largest barrier over t", "table": largest, "copies": [("latex", "LaTeX"), ("markdown", "Markdown")]}
    ]
    if list(files) != list(names):
        named = Table(("model", "file"), (False, False), tuple(zip(names, files, strict=True)))
        tables.insert(0, {"title": "Checkpoints", "table": named})
    if features := features_table(others):
        tables.append({"title": "Features and weights by layer", "table": features})
    if "calibrated" in others:
        tables.append({"title": "Calibrated barriers", "table": calibrated_table(others["calibrated"])})
    if "matching" in others:
        tables.append({"title": "Units that moved", "table": matching_table(others["matching"])})
    content = {
        "title": f"Barriers between {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}",
        "subtitle": subtitle,
        "verdict": [_sentence(peaks, names)],
        "tables": tables,
        "runs": {"title": "Barriers at each t", "table": barriers_table(barriers, names)},
        "details": [("Settings", settings)],
        "copied": [*([("These measurements again:", command)] if command else []), ("BibTeX:", BARRIERS)],
    }
    texts = {"latex": as_latex(largest), "markdown": as_markdown(largest)}
    return write_page(out, content, _sections(names, barriers, peaks, others), {"texts": texts}, export=True)


def _sentence(peaks: pd.DataFrame, names: Sequence[str]) -> str:
    """Return the largest barrier, and how many bands hold 0."""
    name = f"loss_{reference_of(peaks)}_max"
    known = peaks[peaks[name].notna()]
    if known.empty:
        return "No mixed model has a finite loss."
    top = known.nlargest(1, name)
    row, where = top.iloc[0], ends_of(top, names)[0]
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    band = "" if math.isnan(low) else f", with a band from {low:.3g} to {high:.3g}"
    largest = (
        f"The largest loss barrier is {row[name]:.3g} {scale_of('loss', peaks)[1]}{band}: layers {row['group']} at t = "
        f"{row[f'{name}_t']:g}, {where}."
    )
    lows = known[f"{name}_low"].dropna()
    if lows.empty:
        return f"{largest} So few examples give no band, so that chance cannot be told from a cost."
    return (
        f"{largest} The bands of {int((lows <= 0).sum())} of {len(lows)} groups and directions reach down to 0: there, "
        "mixing costs nothing that can be told from chance."
    )


def _sections(
    names: Sequence[str], barriers: pd.DataFrame, peaks: pd.DataFrame, others: Mapping[str, pd.DataFrame]
) -> list[Section]:
    reference, ends = reference_of(peaks), ends_of(peaks, names)
    text = "The largest value along each path from a model's own layers (t = 0) to the other's (t = 1), with its band."
    found = [
        Section(
            f"largest-{metric}",
            f"Largest {metric} barrier by layer",
            text,
            None,
            peaks_chart(peaks, reference, ends, metric),
            PEAKS,
        )
        for metric in ("loss", "error")
    ]
    for name, picture in (checkpoint_pictures(barriers, names) | feature_pictures(others)).items():
        title = TITLES.get(name, name.replace("-", " ").capitalize())
        found.append(pictured(name, title, TEXTS.get(name, ""), picture))
    return found
