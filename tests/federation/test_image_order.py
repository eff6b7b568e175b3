"""Images have their channels last, which is faster, but not for convolutions that oneDNN miscomputes so."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.federation.federation import federation_of


@pytest.mark.parametrize(("width", "has_channels_last"), [(2, False), (16, True)])
def test_strided_convolutions_of_few_channels_get_the_usual_order(
    width: int, has_channels_last: bool, tiny: Callable[..., Config]
) -> None:
    images = {"name": "toy", "examples": 60, "shape": [3, 8, 8]}
    federation = federation_of(tiny(data=images, model={"name": "resnet18", "norm": "batch", "width": width}))
    model, found = federation.model(), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels == width:
            module.register_forward_pre_hook(
                lambda _, args: found.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    inputs, _ = federation.data.test(6)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    model(inputs)
    assert found == [has_channels_last]
