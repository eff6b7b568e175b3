"""What travels in Flower messages between the strategy and the clients, and how it is written.

Names of records and keys follow Flower's own strategies, so that an ordinary Flower ``ClientApp`` can answer:

========== ============ =============================================================================
direction  record       meaning
========== ============ =============================================================================
to client  ``arrays``   the layers that the client takes from the server
to client  ``config``   ``server-round``; for training ``upload``, the keys to send back, ``plan``, the local
                        plan as JSON, and ``probe``, whether the analysis wants the rest of the model too
to client  ``global``   for evaluation: the entries of the global model that differ from what was taken
to server  ``arrays``   the shared layers after training
to server  ``metrics``  ``num-examples`` and whatever the client measured
to server  ``probe``    where asked for: the entries that are not in ``arrays``; not counted as traffic
========== ============ =============================================================================
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fedsim.params import Params
from fedsim.training import LocalPlan, Phase

ARRAYS, CONFIG, GLOBAL, METRICS, PROBE = "arrays", "config", "global", "metrics", "probe"
SERVER_ROUND, UPLOAD, PLAN, NUM_EXAMPLES = "server-round", "upload", "plan", "num-examples"


def encode(params: Params) -> ArrayRecord:
    """Write parameters as a Flower record with the same keys."""
    return ArrayRecord({key: Array(value) for key, value in params.items()})


def decode(record: Mapping[str, Array]) -> Params:
    """Read parameters from a Flower record."""
    return {key: torch.from_numpy(array.numpy()) for key, array in record.items()}


def size_bytes(array: Array) -> int:
    """Return the bytes of an array's values, without any framing."""
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def measurements(values: Mapping[str, float]) -> MetricRecord:
    """Write measurements as a Flower record."""
    record = MetricRecord()
    for name, value in values.items():
        record[name] = value
    return record


@dataclass(frozen=True)
class Instructions:
    """What the server asks of a client for training.

    Parameters
    ----------
    upload
        State-dict keys to send back.
    probe
        Whether the analysis wants the other entries too.
    """

    server_round: int
    upload: tuple[str, ...]
    plan: LocalPlan
    probe: bool = False

    def write(self) -> dict[str, int | bool | str | list[str]]:
        """Return the settings for a Flower config."""
        return {
            SERVER_ROUND: self.server_round,
            UPLOAD: list(self.upload),
            PLAN: json.dumps([asdict(phase) for phase in self.plan.phases]),
            PROBE: self.probe,
        }

    @classmethod
    def read(cls, config: ConfigRecord) -> Self:
        """Read the settings that `write` returned."""
        values: dict[str, Any] = dict(config)
        plan = LocalPlan(tuple(Phase(**phase) for phase in json.loads(values[PLAN])))
        return cls(values[SERVER_ROUND], tuple(values[UPLOAD]), plan, values[PROBE])
