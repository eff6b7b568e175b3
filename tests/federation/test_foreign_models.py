"""Two rounds of federated averaging of models as people bring them, against plain torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.data.dataset import Dataset, Examples
from fedsim.experiment.restored import restored_model
from fedsim.results.folder import RunFolder
from tests.federation.plain_fedavg import plain_fedavg
from tests.models.foreign import CLASSES, FOREIGN, inputs_of, make_foreign

# A class for each pixel is nothing that a data set of a run has. The others are trained like one that is not left out.
LEFT_OUT = {"u-net", "gru with an optional state", "symmetric", "old spectral_norm", "folded buffers", "late clamp"}
LEFT_OUT |= {"own attention", "from the dict", "dicts"}


def build(shape: tuple[int, ...], classes: int, entry: str) -> nn.Module:
    """Return a foreign model for a run, always with the same weights."""
    return make_foreign(entry)


def data(entry: str) -> Dataset:
    """Return examples for a foreign model."""
    inputs = inputs_of(FOREIGN[entry].shape, 40, seed=5)
    each = entry == "gpt-2"
    targets = inputs_of((5,) if each else (40,), 40, seed=6) if each else torch.arange(40) % CLASSES
    return Dataset(
        "foreign",
        Examples(inputs[:32], targets[:32]),
        Examples(inputs[32:], targets[32:]),
        tuple(map(str, range(CLASSES))),
    )


@pytest.mark.slow
@pytest.mark.parametrize("entry", sorted(FOREIGN.keys() - LEFT_OUT))
def test_two_rounds_are_those_of_plain_torch(
    entry: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    options: dict[str, Any] = {"entry": entry}
    here = "tests.federation.test_foreign_models"
    config = tiny(
        data={"name": f"{here}:data", **options},
        model={"name": f"{here}:build", **options},
        partition={"scheme": "dirichlet", "alpha": 5.0},
        clients=3,
        rounds=2,
        local={"lr": 0.1, "epochs": 2, "batch_size": 5},
        engine={"workers": 1},
        barriers={"every": 0},
    )
    expected = plain_fedavg(config, partial(make_foreign, entry))
    found = restored_model(play(config))
    for key, value in expected.items():
        if key.rpartition(".")[2] not in ("_u", "_v"):  # the vectors of a spectral norm fit its averaged weight
            other = found.state_dict()[key]
            torch.testing.assert_close(other, value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
