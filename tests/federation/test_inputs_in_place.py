"""A model that changes its inputs in place gets copies of them: a run's data stay as they are."""

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.federation.federation import federation_of
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from fedsim.training.evaluation import evaluate


class Scaling(nn.Module):
    """Scales its inputs, in place or not, in training and evaluation or in training alone."""

    def __init__(self, classes: int, in_place: bool, always: bool) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)
        self.in_place, self.always = in_place, always

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.in_place:
            inputs = inputs.clone()
        if self.training or self.always:
            inputs.sub_(0.5).mul_(1.5)
        return self.head(self.norm(self.first(inputs.flatten(1))).relu())


def scaling(shape: tuple[int, ...], classes: int, in_place: bool = True, always: bool = True) -> nn.Module:
    return Scaling(classes, in_place, always)


def model(**options: bool) -> dict[str, object]:
    return {"name": "tests.federation.test_inputs_in_place:scaling"} | options


# Recomputed statistics take slices of the training inputs; Moon runs three models on each batch.
@pytest.mark.parametrize(
    ("always", "changes"),
    [
        (True, {"strategy__buffers": "recompute"}),
        (False, {"strategy": {"name": "moon"}}),
        (True, {"engine__cohort": 4}),
    ],
)
def test_a_run_has_the_numbers_of_a_model_that_copies_its_inputs(
    always: bool, changes: dict, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    writes, copies = (
        read_result(play(tiny(model=model(in_place=in_place, always=always), **changes), str(in_place)))
        for in_place in (True, False)
    )
    assert len(writes.metrics)
    pd.testing.assert_frame_equal(writes.metrics, copies.metrics)


def test_evaluation_leaves_a_run_s_data_as_they_are(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(model=model()))
    inputs, targets = federation.data.test(20)
    before = inputs.clone()
    plain = scaling(inputs.shape[1:], federation.data.dataset.outputs, in_place=False)
    plain.load_state_dict(federation.model().state_dict())
    losses = [evaluate(federation.model(), inputs, targets).loss for _ in range(2)]
    assert losses == pytest.approx([evaluate(plain, inputs, targets).loss] * 2)
    assert torch.equal(inputs, before)
