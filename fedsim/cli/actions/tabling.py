"""``fedsim table``: one measure of runs as a table for a paper."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.cli.terminal import print_lines, print_table, write_file, write_to
from fedsim.experiment.paper_table import table as table_of


def table(paths: Sequence[Path], kind: str, out: Path | None, **options: Any) -> None:
    """Print a table, or write it to a file."""
    found = table_of(paths, **options)
    match kind:
        case "latex":
            text = found.latex
        case "markdown":
            text = found.markdown
        case "csv":
            text = found.csv
        case _:
            print_table(found.text)
            return
    if out:
        write_to(out.parent, partial(write_file, out, text), "table", "--out")
    else:
        print_lines(*text.splitlines())
