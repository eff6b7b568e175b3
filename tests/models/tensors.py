"""Small models with unusual tensors, as custom models: ``[model] name = "tests.models.tensors:..."``."""

import math

import torch
from torch import Tensor, nn, tanh

Shape = tuple[int, ...]
WIDTH = 8


class Net(nn.Module):
    """A perceptron, with what another part makes of its hidden units."""

    def __init__(self, shape: Shape, classes: int, part: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(math.prod(shape), WIDTH)
        self.part = nn.Identity() if part is None else part
        self.last = nn.Linear(WIDTH, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = tanh(self.first(inputs.flatten(1).to(self.first.weight.dtype)))
        return self.last(self.part(hidden).to(self.last.weight.dtype))


class Scale(nn.Module):
    """Multiplies by a buffer, or by a parameter that is not trained."""

    def __init__(self, values: Tensor, parameter: bool = False, persistent: bool = True) -> None:
        super().__init__()
        if parameter:
            self.scale = nn.Parameter(values, requires_grad=False)
        else:
            self.register_buffer("scale", values, persistent=persistent)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale.to(hidden.dtype)


class In(nn.Module):
    """Runs a part in another precision."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part.to(dtype), dtype

    def forward(self, hidden: Tensor) -> Tensor:
        return self.part(hidden.to(self.dtype)).to(hidden.dtype)


def bfloat16_buffer(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.linspace(0.5, 1, WIDTH).bfloat16()))


def float8_buffer(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.linspace(0.5, 1, WIDTH).to(torch.float8_e4m3fn)))


def bfloat16_block(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, In(nn.Linear(WIDTH, WIDTH), torch.bfloat16))


def float16_block(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, In(nn.Linear(WIDTH, WIDTH), torch.float16))


def float64_block(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, In(nn.Linear(WIDTH, WIDTH), torch.float64))


def bfloat16_norm(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, In(nn.BatchNorm1d(WIDTH), torch.bfloat16))


def bfloat16(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes).bfloat16()
