"""Small models with unusual tensors, as custom models: ``[model] name = "tests.models.tensors:..."``."""

import math
import warnings

import torch
from torch import Tensor, nn, tanh
from torch.nn.utils import prune

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


def lazy(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(4, 3, stride=2), nn.LazyBatchNorm2d(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(classes)
    )


def older_weight_norm(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.first)
    return model


def weight_norm(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes)
    nn.utils.parametrizations.weight_norm(model.first)
    return model


def pruned(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes)
    prune.l1_unstructured(model.first, "weight", 0.5)
    return model


def expanded_buffer(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.tensor([0.5]).expand(WIDTH)))


def outside_the_state(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.rand(WIDTH), persistent=False))


def integer_parameter(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.arange(1, WIDTH + 1), parameter=True))


def boolean_buffer(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.arange(WIDTH) > 1))


def empty(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes)
    model.nothing = nn.Parameter(torch.empty(0, 4))
    model.register_buffer("no_buffer", torch.empty(0))
    model.register_buffer("none", None)
    model.register_parameter("no_parameter", None)
    return model


def channels_last(shape: Shape, classes: int) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def viewed(shape: Shape, classes: int) -> nn.Module:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 6 * 6, classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(-1, 4 * 6 * 6))

    return Viewed()


def not_contiguous(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes)
    model.first.weight = nn.Parameter(model.first.weight.detach().t().contiguous().t())
    return model


def tied(shape: Shape, classes: int) -> nn.Module:
    part = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    part[2].weight = part[0].weight
    return Net(shape, classes, part)


def scalar(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes, Scale(torch.tensor(0.5), parameter=True))
    return model.requires_grad_()


def sparse_embedding(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(Tokens(), nn.Embedding(20, WIDTH, sparse=True), Mean(), nn.Linear(WIDTH, classes))


class Tokens(nn.Module):
    """Makes integers from 0 to 19 of numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (10 + 4 * inputs.flatten(1)).long().clamp(0, 19)


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.mean(1)


def used_twice(shape: Shape, classes: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    return Net(shape, classes, nn.Sequential(block, nn.Tanh(), block))


class Turned(nn.Module):
    """Multiplies by a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden * self.turn).real


def complex_weights(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Turned())


def spectral_norm(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)))


def older_spectral_norm(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)))


def frozen_base(shape: Shape, classes: int) -> nn.Module:
    model = Net(shape, classes)
    model.first.requires_grad_(False)
    return model


def float8_frozen(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Scale(torch.linspace(0.5, 1, WIDTH).to(torch.float8_e4m3fn), parameter=True))


class Attention(nn.Module):
    """Lets each hidden unit see those before it, by a mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(1, 4)
        self.register_buffer("mask", torch.full((WIDTH, WIDTH), float("-inf")).triu(1))

    def forward(self, hidden: Tensor) -> Tensor:
        query = self.query(hidden.unsqueeze(2))
        return ((query @ query.mT + self.mask).softmax(2) @ hidden.unsqueeze(2)).squeeze(2)


def infinite_mask(shape: Shape, classes: int) -> nn.Module:
    return Net(shape, classes, Attention())
