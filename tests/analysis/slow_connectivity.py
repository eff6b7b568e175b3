"""Connectivity computed slowly, module by module, from hooks on whole models."""

import copy
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from fedsim.models.params import Params
from tests.analysis.cases import mlp, models

KEYS = ["layer", "base", "other", "t"]


def strange_cnn() -> nn.Module:
    """Strides, dilation, groups and paddings of all kinds."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(6, 4, (3, 2), padding=(1, 0), groups=2, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 2 * 1, 3),
    )


class Block(nn.Module):
    """A residual block with a shortcut that has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.bn2(self.conv2(inner))
        inner += self.downsample(x)
        return self.relu(inner)


def resnet() -> nn.Module:
    """Names as in torchvision."""
    stem = OrderedDict(conv1=nn.Conv2d(1, 2, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(2), relu=nn.ReLU())
    head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, 3))
    return nn.Sequential(stem | {"block": Block()} | head)


class Where(NamedTuple):
    """A call of a module: its first input, or its output."""

    module: str
    call: int
    what: str


@dataclass(frozen=True)
class Expected:
    """Where a layer's features, the values before its activation, and its input, if it is linear, are found."""

    features: Where
    before: Where | None = None
    argument: Where | None = None


def out(module: str, call: int = 0) -> Where:
    return Where(module, call, "out")


def into(module: str, call: int = 0) -> Where:
    return Where(module, call, "in")


LAYERS = {
    "mlp": {
        "0": Expected(out("1"), into("1")),
        "2": Expected(out("3"), into("3"), into("2")),
        "4": Expected(out("4"), None, into("4")),
    },
    "strange": {
        "0": Expected(out("1"), into("1")),
        "2": Expected(out("3"), into("3"), into("2")),
        "4": Expected(out("7"), into("5"), into("4")),
        "8": Expected(out("8"), None, into("8")),
    },
    "resnet": {
        "conv1": Expected(out("conv1")),
        "bn1": Expected(out("relu"), into("relu")),
        "block.conv1": Expected(out("block.conv1"), None, into("block.conv1")),
        "block.bn1": Expected(out("block.relu"), into("block.relu")),
        "block.conv2": Expected(out("block.conv2"), None, into("block.conv2")),
        "block.bn2": Expected(out("block.bn2")),
        "block.downsample.0": Expected(out("block.downsample.0"), None, into("block.downsample.0")),
        "block.downsample.1": Expected(out("block.downsample.1")),
        "block": Expected(into("fc"), into("block.relu", 1)),
        "fc": Expected(out("fc"), None, into("fc")),
    },
}
MAKE = {"mlp": mlp, "strange": strange_cnn, "resnet": resnet}


def made(name: str, count: int) -> tuple[nn.Module, list[Params], Tensor]:
    model, states, inputs, _ = models(count, MAKE[name])
    # No example's features are all 0.
    states = [{key: value + 0.5 * key.endswith("bias") for key, value in state.items()} for state in states]
    if name != "mlp":
        inputs = torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return model, states, inputs


def calls_of(model: nn.Module, state: Params, inputs: Tensor) -> dict[Where, Tensor]:
    """Run a model and keep everything."""
    net = copy.deepcopy(model)
    net.load_state_dict(state)
    net.eval()
    calls: dict[Where, Tensor] = {}
    count = Counter[str]()

    def keep(name: str, args: tuple[Tensor, ...], result: Tensor) -> None:
        calls[into(name, count[name])], calls[out(name, count[name])] = args[0].clone(), result.clone()
        count[name] += 1

    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, args, result, name=name: keep(name, args, result))
    with torch.no_grad():
        net(inputs)
    return calls


def lerped(first: Params, second: Params, t: float) -> Params:
    return {k: (1 - t) * v + t * second[k] if v.is_floating_point() else v for k, v in first.items()}


def cosines(first: Tensor, second: Tensor) -> np.ndarray:
    a, b = first.flatten(1).numpy(), second.flatten(1).numpy()
    return np.array([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])


def dist(first: Tensor, second: Tensor) -> float:
    x, y = first.flatten().numpy(), second.flatten().numpy()
    return ((x - y) ** 2).sum() / np.linalg.norm(x) / np.linalg.norm(y)


def columns_of(module: nn.Module, argument: Tensor) -> Tensor:
    """The input of a layer as what its weight, as a matrix, is multiplied with: [n, rest, positions]."""
    if isinstance(module, nn.Linear):
        return argument[..., None]
    padding = module.padding
    if module.padding_mode == "circular":
        argument = nn.functional.pad(argument, (padding[1], padding[1], padding[0], padding[0]), mode="circular")
        padding = (0, 0)
    return unfold(argument, module.kernel_size, module.dilation, padding, module.stride)


def matrix_of(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight as a matrix over all inputs, 0 for those of other groups."""
    groups = getattr(module, "groups", 1)
    return torch.block_diag(*weight.flatten(1).chunk(groups))


def exchanged(module: nn.Module, key: str, states: tuple[Params, Params], inputs: tuple[Tensor, Tensor]) -> list[float]:
    first, second = (matrix_of(module, state[key]) for state in states)
    h_first, h_second = (columns_of(module, each) for each in inputs)
    left = first @ h_first + second @ h_second
    right = first @ h_second + second @ h_first
    return [dist(left, right), dist(first, second), dist(h_first, h_second)]


def slow_row(
    model: nn.Module,
    name: str,
    layer: str,
    ends: tuple[Params, Params],
    calls: list[dict[Where, Tensor]],
    t: float,
    grid: tuple[float, ...],
) -> dict[str, float]:
    expected = LAYERS[name][layer]
    first, second, mixed = calls
    a, b, f = (calls[expected.features] for calls in (first, second, mixed))
    between = ((1 - t) * a + t * b).reshape(a.shape)
    cosine, baseline = cosines(f, between), cosines(a, b)
    factor = ((f * between).flatten(1).sum(1) / between.square().flatten(1).sum(1)).numpy()
    row = {
        "n": len(a),
        "cosine": cosine.mean(),
        "cosine_std": cosine.std(ddof=1),
        "cosine_ends": baseline.mean(),
        "cosine_ends_std": baseline.std(ddof=1),
        "ratio": (1 - cosine).mean() / (1 - baseline).mean(),
        "coefficient": factor.mean(),
        "coefficient_std": factor.std(ddof=1),
    }
    row |= dict.fromkeys(("additivity", "commutativity", "weight_distance", "feature_distance"), np.nan)
    if expected.before:
        z, w = first[expected.before], second[expected.before]
        tail = tail_of(name, layer)
        row["additivity"] = np.mean(
            [
                max(dist(tail((1 - s) * z[i : i + 1] + s * w[i : i + 1]), (1 - s) * a[i] + s * b[i]) for s in grid)
                for i in range(len(a))
            ]
        )
    if expected.argument:
        inputs = first[expected.argument], second[expected.argument]
        found = exchanged(model.get_submodule(layer), f"{layer}.weight", ends, inputs)
        row |= dict(zip(("commutativity", "weight_distance", "feature_distance"), found, strict=True))
    return row


def tail_of(name: str, layer: str) -> nn.Module:
    if name == "strange":
        return {"0": nn.ReLU(), "2": nn.Tanh(), "4": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))}[layer]
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)) if layer == "block" else nn.ReLU()
