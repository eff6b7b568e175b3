import copy
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Recipe, list_mixes
from fedsim.models.layers import Layers
from tests.analysis.test_mixed_models import IMAGES, Branches, N, different_states, made, targets_of
from tests.models.test_architectures import CLASSES, ZOO, batch, build


def all_pairs(model: nn.Module, states: int, ts: Sequence[float], models: MixedModels) -> list[Recipe]:
    groups = {name: (name,) for name in Layers.of(model).names}
    return [models.recipe(mix) for mix in list_mixes(groups, states, "pairs", ts)]


@pytest.mark.slow
@pytest.mark.parametrize("max_memory", [1, 20_000])
def test_little_memory_changes_rounding_only(max_memory: int) -> None:
    model, inputs = build("cnn"), batch(ZOO["cnn"].shape, 20)
    states, targets = different_states(model, 3), targets_of(model, inputs)
    much = MixedModels(model, states)
    little = MixedModels(model, states, max_memory=max_memory)
    recipes = all_pairs(model, 3, (0.5, 0.8), much)
    expected, found = (each.evaluate(recipes, Data(inputs, targets)) for each in (much, little))
    for recipe in recipes:
        torch.testing.assert_close(found[recipe].losses, expected[recipe].losses, rtol=1e-5, atol=1e-6)
    assert little.flops(recipes, inputs) > much.flops(recipes, inputs)


@pytest.mark.slow
def test_each_threads_numbers_are_the_same() -> None:
    model, inputs = build("resnet20", "group"), batch(ZOO["resnet20"].shape, 20)
    states, targets = different_states(model, 2), targets_of(model, inputs)
    results = []
    for threads in (1, 3):
        models = MixedModels(model, states, threads=threads)
        results.append(models.evaluate(all_pairs(model, 2, (0.5,), models), Data(inputs, targets)))
    for recipe, one in results[0].items():
        assert torch.equal(one.losses, results[1][recipe].losses)


@pytest.mark.parametrize("ts", [(0.5,), (0.1, 0.5, 0.7)])
def test_the_work_is_what_the_definition_leaves(ts: Sequence[float]) -> None:
    # Layer k of one model is needed on its own inputs and, to be mixed, with every partner's weights: N^2 times;
    # behind it, what follows is needed for each ordered pair and t, with the base's weights.
    widths, states = (6, 5, 4, 3), 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    inputs = torch.randn(7, widths[0], generator=torch.Generator().manual_seed(0))
    models = MixedModels(model, different_states(model, states))
    flops = [2 * a * b for a, b in pairwise(widths)]
    pairs = states * (states - 1)
    expected = 0
    for k, own in enumerate(flops):
        # The first layer sees the inputs of all models: their results are shared, and so are the mixes of two.
        expected += (states if k == 0 else states**2) * own + pairs * len(ts) * sum(flops[k + 1 :])
    own = [models.own(state) for state in range(states)]
    assert models.flops([*own, *all_pairs(model, states, ts, models)], inputs) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet5", "vgg11", "resnet18", "resnet20", "mobilenet", "torchvision"])
def test_the_work_of_one_model_is_what_torch_counts(name: str) -> None:
    model, inputs = build(name), batch(ZOO[name].shape, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    models = MixedModels(model, [model.state_dict()])
    assert models.flops([models.own(0)], inputs) == counter.get_total_flops() / 2


def test_the_share_that_a_change_costs() -> None:
    model, inputs = made(Branches), IMAGES
    models = MixedModels(model, [model.state_dict()])
    assert models.changed_share(["fc"]) == 1.0
    models.evaluate([models.own(0)], Data(inputs, targets_of(model, inputs)))
    pixels = 36
    flops = {"stem": 2 * 9 * 4, "left": 2 * 4 * 4, "right": 2 * 9 * 16, "twice": 2 * 2 * 9 * 64}
    total = pixels * sum(flops.values()) + 2 * 8 * CLASSES
    assert models.changed_share(["fc"]) == pytest.approx(2 * 8 * CLASSES / total)
    assert models.changed_share(["left"]) == pytest.approx(1 - pixels * (flops["stem"] + flops["right"]) / total)
    assert models.changed_share(["stem", "fc"]) == 1.0
    assert models.changed_share([]) == 0.0


def test_sums_in_the_other_precision_and_the_models_mode_stay_as_they_are() -> None:
    model = copy.deepcopy(made(Branches)).double().train()
    before = copy.deepcopy(model.state_dict())
    models = MixedModels(model, [model.state_dict()])
    inputs = IMAGES.double()
    found = models.evaluate([models.own(0)], Data(inputs, torch.zeros(N, dtype=torch.int64)))[models.own(0)]
    expected = cross_entropy(copy.deepcopy(model).eval()(inputs), torch.zeros(N, dtype=torch.int64)).item()
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert model.training
    assert model.activation.inplace
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
