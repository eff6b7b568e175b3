"""Parametrised modules as one layer, complex weights as real ones, and spectral norms that fit any weight."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fedsim.models.layers import Layers
from fedsim.models.parametrised import parametrise_, plain_
from fedsim.models.params import lerp, load_state_, state_of
from fedsim.training import SGD, LocalPlan, LocalTask, train_, train_cohort
from fedsim.training.evaluation import evaluate, evaluate_cohort
from tests.models.test_frozen import stream

INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3


class LowRank(nn.Module):
    """An adapter in the form of a parametrisation, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.zeros(4, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapted(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", LowRank())


@pytest.mark.parametrize(
    "parametrised", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal, adapted]
)
def test_a_module_and_all_that_its_parametrisations_own_is_one_layer(
    parametrised: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(parametrised(nn.Linear(6, 4)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 3)))
    for inputs in (None, INPUTS):
        layers = Layers.of(model, inputs)
        assert layers.names == ("0", "2")
        assert layers.group("head").layers == ("2",)
        assert set(layers.keys(layers.names)) == set(dict(model.named_parameters()))
        assert {layer.kind for layer in layers} == {"linear"}


def test_buffers_that_are_no_statistics_stay_the_clients() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4)), nn.BatchNorm1d(4))
    model.register_buffer("mask", torch.ones(4))
    layers = Layers.of(model)
    assert layers["0"].others == ("0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v")
    assert layers["1"].keys == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert set(layers.keys(layers.names)) == {*dict(model.named_parameters()), "1.running_mean", "1.running_var"}
    assert layers.of_key("mask") == "mask"
    assert layers["mask"].keys == ()


class Fourier(nn.Module):
    """A layer with complex weights, one of which is used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(4, dtype=torch.complex64))])
        self.again = self.mix
        self.fc = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(inputs) @ self.mix * self.scales[0] + torch.fft.rfft(inputs) @ self.again
        return self.fc(torch.view_as_real(spectrum).flatten(1))


def fourier() -> nn.Module:
    torch.manual_seed(0)
    return Fourier()


def test_complex_weights_become_real_ones_that_are_in_a_layer_and_come_back() -> None:
    model = fourier()
    before, keys = model(INPUTS), list(model.state_dict())
    parametrise_(model)
    assert all(not value.is_complex() for value in model.state_dict().values())
    assert Layers.of(model, INPUTS).names == ("mix", "scales", "fc")
    torch.testing.assert_close(model(INPUTS), before)
    plain_(model)
    assert sorted(model.state_dict()) == sorted(keys)
    torch.testing.assert_close(model(INPUTS), before)


def test_complex_weights_train_as_in_torch_alone_and_in_a_cohort() -> None:
    plain, model = fourier(), fourier()
    parametrise_(model)
    start = {key: value.clone() for key, value in state_of(model).items()}
    settings = SGD(epochs=4, batch_size=8, lr=0.1, momentum=0.9)
    optimiser = torch.optim.SGD(plain.parameters(), 0.1, 0.9)
    for _ in range(4):
        optimiser.zero_grad()
        nn.functional.cross_entropy(plain(INPUTS), TARGETS).backward()
        optimiser.step()
    train_(model, INPUTS, TARGETS, LocalPlan(), settings, stream())
    together = train_cohort(
        copy.deepcopy(model),
        [LocalTask(start, INPUTS, TARGETS, stream()) for _ in range(2)],
        LocalPlan(),
        settings,
    )
    for state in (state_of(model), together[1][0]):
        trained = copy.deepcopy(model)
        load_state_(trained, state)
        plain_(trained)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["new", "older"])
def test_an_average_of_spectral_norms_has_a_largest_singular_value_of_one(norm: Callable[..., nn.Module]) -> None:
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(norm(nn.Linear(6, 5)), nn.Tanh(), norm(nn.Linear(5, 3)))
        parametrise_(model)
        members.append({key: value.clone() for key, value in state_of(model).items()})
    model.eval()
    load_state_(model, lerp(members[0], lerp(members[1], members[2], 0.5), 2 / 3))
    model(INPUTS)  # which computes the weights of the older form
    for weight in (model[0].weight, model[2].weight):
        torch.testing.assert_close(torch.linalg.svdvals(weight)[0], torch.tensor(1.0))
    alone = evaluate(model, INPUTS, TARGETS)
    [together] = evaluate_cohort(model, [(state_of(model), INPUTS, TARGETS)])
    torch.testing.assert_close(together.losses, alone.losses)
    plain_(model)  # as torch itself would evaluate it
    torch.testing.assert_close(evaluate(model, INPUTS, TARGETS).losses, alone.losses, rtol=1e-5, atol=1e-6)
    vectors = [value for name, value in model.named_buffers() if name.endswith(("_u", "_v"))]
    assert len(vectors) == 4
    for vector in vectors:
        torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
