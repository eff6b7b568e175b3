"""``fedsim barriers``: barriers between checkpoints."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.cli.terminal import print_table, say, write_to
from fedsim.experiment.saved_models.comparison import compare_checkpoints, comparison_config, write_compared
from fedsim.results.report.drawing.checkpoints import (
    barriers_table,
    features_table,
    matching_table,
    peaks_table,
    uncertainty_note,
)
from fedsim.results.report.drawing.width import calibrated_table


def barriers(
    paths: Sequence[Path], model: str, data: str, changes: Mapping[tuple[str, ...], Any], out: Path, **options: Any
) -> None:
    """Measure, print and write the barriers between checkpoints."""
    compared = compare_checkpoints(paths, comparison_config(model, data, changes), **options)
    shown = compared.shown
    for name, file in zip(shown.names, compared.names, strict=True):
        if name != file:
            say(f"{name}: {file}")
    print_table(peaks_table(compared.peaks, shown.names))
    print_table(barriers_table(compared.barriers, shown.names))
    say(uncertainty_note(compared.barriers))
    if features := features_table(shown.others):
        print_table(features)
    if "calibrated" in shown.others:
        print_table(calibrated_table(shown.others["calibrated"]))
    if "matching" in shown.others:
        print_table(matching_table(shown.others["matching"]))
    command = shlex.join(["fedsim", *sys.argv[1:]])
    write_to(out, partial(write_compared, compared, out, command), "page, tables and figures")
