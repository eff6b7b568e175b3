"""How summaries of experiments write their tables and figures."""

from pathlib import Path

import pandas as pd

from fedsim.results.files import write_whole
from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import save


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    """Write rows with five significant digits, the same bytes on every system."""
    write_whole(path, rows.to_csv(index=False, float_format="%.5g", lineterminator="\n"))


def write_figure(path: Path, figure: plotting.Figure) -> None:
    """Write a figure as PNG and as PDF, to files of this path without an ending."""
    for kind in ("png", "pdf"):
        write_whole(path.with_name(f"{path.name}.{kind}"), save(figure, kind))
