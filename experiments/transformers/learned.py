"""Barriers after learned rotations. Call with a folder of runs of two clients and an output folder.

``python -m experiments.transformers.learned runs/vit experiments/results/transformers``
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import fedsim
from experiments.writing import write_csv
from fedsim.alignment import absorb_norms, learn_rotations, permute, rotation_spec
from fedsim.analysis import barriers
from fedsim.data.dataset import Examples
from fedsim.federation.data import federated_data_of
from fedsim.models.params import Params, state_of
from fedsim.seeds import rng

TS = (0.0, 0.25, 0.5, 0.75, 1.0)


def rows_of(run: Any) -> pd.DataFrame:
    """Return the barriers of one run's two models on the server's test data, after learning their rotations."""
    config, data = run.config, federated_data_of(run.config)
    inputs, targets = data.client(0).train
    model, other = run.model(0), run.model(1)
    spec = rotation_spec(model, inputs[:2])
    first, second = (absorb_norms(state_of(each), spec.norms) for each in (model, other))
    learned = learn_rotations(model, spec, first, second, inputs, targets, rng=rng(config.seed, "matching"))
    return barrier_rows(run, [first, permute(second, spec, learned)], data.test(), "learned")


def barrier_rows(run: Any, pair: Sequence[Params], test: Examples, matching: str) -> pd.DataFrame:
    """Return the barrier and the loss of the mixes of two models, in nats, and their error, by t."""
    table = barriers(run.model(0), pair, *test, groups="full", against="pairs", ts=TS)
    rows = table.query("base == 0")[["t", "loss_mean_ends", "loss", "error"]]
    named = {key: value for key, value in run.config.model.options.items() if key == "tied"}
    return rows.rename(columns={"loss_mean_ends": "barrier"}).assign(matching=matching, seed=run.config.seed, **named)


def main(runs: Path, out: Path) -> None:
    """Write every row as CSV; GPTs with tied embeddings are left out."""
    chosen = [run for run in fedsim.load(runs) if run.config.model.options.get("tied", False) is False]
    table = pd.concat(map(rows_of, chosen), ignore_index=True)
    write_csv(out / f"{runs.name}_learned.csv", table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
