"""Results of runs that never took place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.config import Config
from fedsim.config.naming import run_name
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.folder import RunFolder
from fedsim.results.result import Result
from partitions import LabelCounts

# Rows of one round: group, base, other, t, loss_mean_ends.
ROWS = [
    ("fc1", 0, -1, 1.0, 0.1),
    ("fc1", 1, -1, 1.0, 0.3),
    ("fc2", 0, -1, 1.0, -0.2),
    ("full", 0, -1, 1.0, 0.8),
    ("full", 1, -1, 1.0, 0.8),
    ("shallow:1", 0, -1, 1.0, 0.5),
    ("full", 0, 1, 0.5, 2.0),
    ("full", 0, 1, 0.25, 1.0),
    ("fc1", 0, 1, 0.5, 5.0),
]


@pytest.fixture
def result(tiny: Callable[..., Config]) -> Callable[..., Result]:
    """Build a result with made-up barriers and client accuracies; ``scale`` multiplies the barriers."""
    nothing = pd.DataFrame()
    nobody = Heterogeneity(np.zeros(0), LabelCounts(np.zeros(1, dtype=int), np.zeros(0), np.zeros(0), 2), ("a", "b"))

    def build(name: str = "a", scale: float = 1.0, accuracy: tuple[float, ...] = (0.5,), **changes: Any) -> Result:
        table = pd.DataFrame(ROWS, columns=["group", "base", "other", "t", "loss_mean_ends"])
        rounds = [table.assign(round=1, loss_mean_ends=9.0), table.assign(round=2)]
        barriers = pd.concat(rounds, ignore_index=True)
        barriers["loss_mean_ends"] *= scale
        columns = ["round", "client", "split", "model", "metric", "value", "n"]
        metrics = pd.DataFrame(
            [
                *((2, client, "test", "personalised", "accuracy", value, 10) for client, value in enumerate(accuracy)),
                (2, None, "test", "global", "accuracy", 0.25, 10),
                (2, 0, "test", "global", "accuracy", 0.75, 10),
            ],
            columns=columns,
        )
        config = tiny(**changes)
        folder = RunFolder(Path(name) / run_name(config))
        return Result(folder, config, metrics, nothing, nothing, barriers, nobody)

    return build
