"""Barriers with a tolerance in float32 and in two precisions: processor seconds on one thread, in turn.

Run with ``python benchmarks/precisions.py``; see ``--help``. The shortest time counts.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.barriers import CASES, NO_SWAPS, Case, examples_of, trained_clients
from benchmarks.machine import describe
from benchmarks.results import save, show
from fedsim.analysis import Data, Models, barriers
from fedsim.training.settings import Precision

COLUMNS = (
    "case",
    "float32_seconds",
    "bfloat16_seconds",
    "faster_by",
    "n",
    "n_float32",
    "largest_difference",
    "float32_se",
    "bfloat16_se",
)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Measure a case in both precisions, in turn, and compare their losses and standard errors."""
    model, states = trained_clients(case.model, case.clients, "cpu")
    inputs, targets = examples_of(case)
    seconds: dict[str, list[float]] = {}
    tables = {}
    for _ in range(repeats):
        for precision in get_args(Precision):
            start = time.process_time()
            tables[precision] = barriers(
                Models(model, states),
                Data(inputs, targets, tolerance=case.tolerance, precision=precision),
                groups=list(case.groups),
                against="pairs",
                ts=case.ts,
                references=NO_SWAPS,
            )
            seconds.setdefault(precision, []).append(time.process_time() - start)
    exact, fast = tables["float32"], tables["bfloat16"]
    best = {precision: min(some) for precision, some in seconds.items()}
    return {
        "case": case.title,
        **{f"{precision}_seconds": each for precision, each in best.items()},
        "faster_by": best["float32"] / best["bfloat16"],
        "n": float(fast["n"].mean()),
        "n_float32": float(fast["n_float32"].mean()),
        "largest_difference": float((exact["loss"] - fast["loss"]).abs().max()),
        **{f"{precision}_se": float(table["loss_mean_ends_se"].mean()) for precision, table in tables.items()},
    }


def main() -> None:
    """Measure all cases that have a tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only 200 examples of each case; write nothing")
    parser.add_argument("--repeats", type=int, default=3, help="how often each precision is run (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in CASES if case.tolerance]
    if options.quick:
        cases = [replace(case, examples=200) for case in cases]
    rows = [measure(case, options.repeats) for case in cases]
    show("barriers in two precisions", rows, COLUMNS)
    if not options.quick:
        save("precisions", describe("cpu"), {}, rows)


if __name__ == "__main__":
    main()
