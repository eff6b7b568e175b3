"""What invertible matrices within heads add to rotations. Call with a folder of runs and an output folder.

``python -m experiments.transformers.invertible runs/vit experiments/results/transformers``
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import fedsim
from experiments.transformers.learned import barrier_rows
from experiments.writing import write_csv
from fedsim.alignment import match_weights, normal_form, permute, rotation_spec
from fedsim.federation.data import federated_data_of
from fedsim.models.params import state_of
from fedsim.seeds import rng


def rows_of(run: Any) -> Iterator[pd.DataFrame]:
    """Yield the barriers of one run's two models on the server's test data, without and with balanced heads."""
    data = federated_data_of(run.config)
    inputs, _ = data.client(0).train
    for matching in ("rotations", "invertible"):
        spec = rotation_spec(run.model(0), inputs[:2], balanced=matching == "invertible")
        first, second = (normal_form(state_of(run.model(client)), spec) for client in (0, 1))
        found = match_weights(spec, first, second, rng=rng(run.config.seed, "matching"))
        yield barrier_rows(run, [first, permute(second, spec, found.permutation)], data.test(), matching)


def main(runs: Path, out: Path) -> None:
    """Write every row as CSV."""
    table = pd.concat([rows for run in fedsim.load(runs) for rows in rows_of(run)], ignore_index=True)
    write_csv(out / f"{runs.name}_invertible.csv", table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
