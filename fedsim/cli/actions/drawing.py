"""``fedsim figure``: one figure of a paper."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.cli.terminal import write_file, write_to
from fedsim.experiment import api
from fedsim.results.report.drawing.paper.figures import paper_figure
from fedsim.results.report.drawing.paper.frame import paper_file

logger = logging.getLogger(__name__)


def figure(name: str, paths: Sequence[Path], out: Path, **options: Any) -> None:
    """Draw a figure of runs and write it into a file, whose suffix is its kind."""
    drawn, notes = paper_figure(name, api.load(paths), **options)
    for note in notes:
        logger.warning(note)
    write_to(out.parent, partial(write_file, out, paper_file(drawn, out.suffix[1:].lower())), "figure")
