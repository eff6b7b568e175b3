"""``fedsim table``: one measure of runs as a table for a paper."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.cli.terminal import print_lines, print_table, write_text, write_to
from fedsim.experiment import api
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.pivot import Spread, pivot_of
from fedsim.results.report.comparing.pivot_text import pivot_csv, pivot_latex, pivot_markdown, pivot_table
from fedsim.results.report.comparing.question import Question


def table(
    paths: Sequence[Path],
    settings: Sequence[str] | None,
    column: str,
    question: Mapping[str, Any],
    spread: Spread,
    kind: str,
    out: Path | None,
    *,
    marks: bool,
) -> None:
    """Print a table, or write it to a file."""
    pivot = pivot_of(compare(api.load(paths), Question(**question)), settings, column)
    if kind == "text" and out is None:
        print_table(pivot_table(pivot, spread, marks=marks))
        return
    match kind:
        case "latex":
            text = pivot_latex(pivot, spread, marks=marks)
        case "markdown":
            text = pivot_markdown(pivot, spread, marks=marks)
        case _:
            text = pivot_csv(pivot)
    if out:
        write_to(out.parent, partial(write_text, out, text), "table", "--out")
    else:
        print_lines(*text.splitlines())
