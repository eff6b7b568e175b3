"""``fedsim path``: a walk between two checkpoints."""

import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.cli.terminal import print_table, say, write_to
from fedsim.experiment.saved_models.comparison import comparison_config
from fedsim.experiment.saved_models.walk import walk_between, write_walk
from fedsim.results.report.drawing.walk import stopped_after, walk_table


def path(
    ends: tuple[Path, Path], model: str, data: str, changes: Mapping[tuple[str, ...], Any], out: Path, **options: Any
) -> None:
    """Walk from one checkpoint to another, print the highest points and write the page, figures and table."""
    walk = walk_between(ends, comparison_config(model, data, changes), **options)
    print_table(walk_table(walk.rows))
    if steps := stopped_after(walk.rows):
        say(f"the walk stopped after {steps:,} steps, before the end; raise --max-steps or --step")
    command = shlex.join(["fedsim", *sys.argv[1:]])
    write_to(out, partial(write_walk, walk, out, command), "page, figures and table")
