import copy
import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Mix
from fedsim.analysis.mixing.names import Normalisation
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.training.buffers import recompute_buffers_
from tests.models.test_architectures import CLASSES, SMALL, ZOO, batch, build, every_model, narrow

N = 9


def different_states(model: nn.Module, count: int, seed: int = 0) -> list[Params]:
    """State dicts far from each other; variances stay positive and tied tensors tied."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for number in range(count):
        other = copy.deepcopy(model)
        for name, value in [*other.named_parameters(), *other.named_buffers()]:
            if value.is_floating_point() and value.numel():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.1 * number
                with torch.no_grad():
                    value.mul_(1 + noise.abs()) if name.endswith("var") else value.add_(noise * value.abs().mean())
        states.append(copy.deepcopy(other.state_dict()))
    return states


def targets_of(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = model(inputs)
    generator = torch.Generator().manual_seed(2)
    return torch.randint(outputs.shape[1], (len(outputs), *outputs.shape[2:]), generator=generator)


def some_mixes(model: nn.Module, states: int, count: int, seed: int = 0) -> list[Mix]:
    rng = np.random.default_rng(seed)
    names = Layers.of(model).names
    mixes = []
    for _ in range(count):
        layers = frozenset(rng.choice(names, rng.integers(len(names) + 1), replace=False).tolist())
        base, other = rng.integers(states, size=2).tolist()
        mixes.append(Mix("", layers, base, other, float(rng.choice([0.0, 0.25, 0.5, 0.7, 1.0]))))
    return mixes


def slowly(
    model: nn.Module,
    states: Sequence[Params],
    mix: Mix,
    inputs: Tensor,
    targets: Tensor,
    normalisation: Normalisation = "interpolate",
) -> tuple[float, float]:
    """Mix a state dict entry by entry, load it, and evaluate the whole model: loss and error."""
    layers = Layers.of(model)
    state = dict(states[mix.base])
    for key, value in state.items():
        if not value.is_floating_point() or layers.of_key(key) not in mix.layers:
            continue
        if normalisation == "base" and "running_" in key:
            continue
        state[key] = (1 - mix.t) * value + mix.t * states[mix.other][key]
    net = copy.deepcopy(model)
    net.load_state_dict(state)
    net.eval()
    if normalisation == "recompute":
        recompute_buffers_(net, inputs, 125)
    with torch.no_grad():
        outputs = net(inputs)
    return cross_entropy(outputs, targets).item(), (outputs.argmax(1) != targets).double().mean().item()


def assert_agrees(
    model: nn.Module, inputs: Tensor, *, mixes: int = 8, normalisation: Normalisation = "interpolate", **options: int
) -> MixedModels:
    targets = targets_of(model, inputs)
    states = different_states(model, 3)
    models = MixedModels(model, states, normalisation=normalisation, calibration=inputs, **options)
    asked = some_mixes(model, len(states), mixes)
    evaluated = models.evaluate([models.recipe(mix) for mix in asked], Data(inputs, targets))
    for mix in asked:
        found, (loss, error) = evaluated[models.recipe(mix)], slowly(model, states, mix, inputs, targets, normalisation)
        assert found.loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert float(found.errors.mean()) == pytest.approx(error, abs=1.01 / targets.numel())
    return models


@pytest.mark.slow
@every_model
def test_every_model_agrees_with_loading_and_evaluating_each_mix(name: str, norm: str | None) -> None:
    shape = SMALL.get(name, ZOO[name].shape)
    models = assert_agrees(narrow(name, shape, norm).eval(), batch(shape, N))
    assert models.operations(batch(shape, N)) is not None


class Branches(nn.Module):
    """Concatenates and adds branches, calls a module twice, and changes tensors in place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.activation = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        x = self.activation(self.stem(x)) * self.scale[:, None, None]
        skip = torch.cat([self.left(x), relu(self.right(x), inplace=True)], 1)
        x = self.twice(self.activation(self.twice(skip)))
        x += skip
        return self.fc(self.norm(x).mean((2, 3)).reshape(n, -1))


class Attention(nn.Module):
    """Torch's own attention, between positions that are parameters of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 8))
        self.embed = nn.Embedding(CLASSES, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens) + self.position)[:, 0])


class Tied(nn.Module):
    """Its last layer is its first, transposed, with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 6)
        self.hidden = nn.Conv1d(6, 6, 3, padding=1)
        self.out = nn.Linear(6, CLASSES)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.hidden(self.embed(tokens).transpose(1, 2))
        return self.out(x.mean(2))


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


TOKENS = batch((5,), N)
IMAGES = batch((1, 6, 6), N)


@pytest.mark.parametrize(("kind", "inputs"), [(Branches, IMAGES), (Attention, TOKENS), (Tied, TOKENS)])
def test_other_architectures_agree_too(kind: type[nn.Module], inputs: Tensor) -> None:
    assert assert_agrees(made(kind), inputs, mixes=30).operations(inputs) is not None


class Undecided(nn.Module):
    """Asks its input what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if float(x.sum()) > 100 else self.two(x)


class Changes(nn.Module):
    """Changes a tensor that it goes on using under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        other = x
        other += 1.0
        return relu(x)


class OfTheBatch(nn.Module):
    """Normalises by the statistics of whatever batch it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Undecided, "decides by the values"),
        (Changes, "changes a tensor in place"),
        (OfTheBatch, "depend on the others"),
    ],
)
def test_a_model_that_cannot_be_taken_apart_is_evaluated_as_a_whole(
    kind: type[nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = batch((4,), N).float()
    with caplog.at_level(logging.INFO):
        models = assert_agrees(made(kind), inputs)
    assert models.operations(inputs) is None
    assert reason in caplog.text
    assert kind.__name__ in caplog.text


class Positions(nn.Module):
    """Asks its input for its length."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(1, CLASSES), nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return sum((self.one if i % 2 else self.two)(x[:, i : i + 1]) for i in range(x.shape[1]))


def test_a_module_that_cannot_be_traced_is_one_operation() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(4, 4), Positions()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(relu(self.first(x)))

    inputs = batch((4,), N).float()
    operations = assert_agrees(made(Outer), inputs).operations(inputs)
    assert operations is not None
    assert [len(each.parts) for each in operations] == [0, 1, 2]


@pytest.mark.parametrize("normalisation", ["base", "recompute"])
def test_policies_for_running_statistics(normalisation: Normalisation) -> None:
    assert_agrees(made(Branches), IMAGES, mixes=12, normalisation=normalisation)
    assert_agrees(build("mlp"), batch(ZOO["mlp"].shape, N), mixes=2, normalisation=normalisation)


def test_recomputed_statistics_need_inputs() -> None:
    model = made(Branches)
    with pytest.raises(ValueError, match="needs calibration inputs"):
        MixedModels(model, [model.state_dict()], normalisation="recompute")
