from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitions import PARTITIONS, Partition, Split
from tests.partitions.cases import CLIENTS, LABELS, OPTIONS, Draw, save


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Call a scheme with its options of the table above; of a split it returns what each client holds."""

    def call(
        scheme: str, seed: int = 0, labels: np.ndarray = LABELS, clients: int = CLIENTS, **options: Any
    ) -> Partition:
        settings = OPTIONS[scheme] | options
        if scheme == "saved" and "path" not in settings:
            settings["path"] = str(save(tmp_path / f"{seed}.npz", seed))
        result = PARTITIONS[scheme](labels, clients, np.random.default_rng(seed), **settings)
        return result.whole if isinstance(result, Split) else result

    return call
