"""With bfloat16 the forward pass is autocast; weights, gradients, optimiser state and evaluation stay float32."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.models.params import state_of
from fedsim.training import ClientRule, LocalPlan, LocalSettings, LocalTask, Phase, Ruled, Step, train_, train_cohort
from fedsim.training.precision import computing_in, in_precision
from tests.training.test_optimizers import EACH, assert_equal, data, net
from tests.training.torch_loop import optimizer_of

ONE = LocalPlan((Phase(steps=3),))


def examples(k: int = 0, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return data(k, n, torch.float32)


@EACH
def test_a_step_is_that_of_a_loop_with_autocast_over_the_forward_pass(settings: LocalSettings) -> None:
    model, (inputs, targets) = net(torch.float32), examples()
    reference, exact = copy.deepcopy(model), copy.deepcopy(model)
    optimizer, rng = optimizer_of(settings, reference.parameters()), np.random.default_rng(0)
    order = torch.from_numpy(rng.permutation(12))
    for chosen in order.split(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(reference(inputs[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
    settings = replace(settings, precision="bfloat16")
    state = train_(model, inputs, targets, ONE, settings, np.random.default_rng(0)).optimizer_state
    assert_equal(model, reference, 1e-6)
    assert {value.dtype for value in [*state.values(), *state_of(model).values()]} == {torch.float32}
    train_(exact, inputs, targets, ONE, replace(settings, precision="float32"), np.random.default_rng(0))
    with pytest.raises(AssertionError):
        assert_equal(model, exact, 1e-6)


class Doubled(ClientRule):
    """Sees the features and the types of a step, and changes gradients by another pass."""

    def loss(self, step: Step) -> torch.Tensor:
        logits, features = step.logits_and_features(step.params, "4")
        assert logits.dtype == features.dtype == torch.float32
        return 2 * step.cross_entropy(logits)

    def gradient(self, step: Step, gradients: dict) -> dict:
        own = {key: step.params[key].detach() for key in gradients}
        found, _ = step.gradient(lambda params: step.cross_entropy(step.logits(params)), own)
        return {key: value - found[key] for key, value in gradients.items()}


class GroupNormDtypes(TorchDispatchMode):
    """Collects what group norms compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        if function is torch.ops.aten.native_group_norm.default:
            self.seen.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_a_group_norm_takes_and_gives_bfloat16_and_computes_in_float32() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))
    inputs = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with computing_in("bfloat16", inputs.device), GroupNormDtypes() as dtypes:
        taken = model[0](inputs)
        assert model[1](taken).dtype == taken.dtype == torch.bfloat16
    assert dtypes.seen == [torch.float32]
    assert torch.equal(in_precision(model, "bfloat16")(inputs), model[1](taken.float()).bfloat16().float())
    assert torch.equal(in_precision(model[1], "bfloat16")(taken.float()), model[1](taken.float()))


@pytest.mark.parametrize("rule", [ClientRule, Doubled])
def test_a_cohort_and_a_rule_compute_as_one_client_does(rule: type) -> None:
    # Rounding differs, by no more than that of bfloat16 itself; without it both would be nearer to float32.
    settings, sizes = LocalSettings(1, 5, 0.05, precision="bfloat16"), (12, 7)
    start, ruled = state_of(smooth()), Ruled(rule(smooth()))
    tasks = [LocalTask(start, *examples(k, n), np.random.default_rng(k), ruled=ruled) for k, n in enumerate(sizes)]
    for k, (together, _) in enumerate(train_cohort(smooth(), tasks, ONE, settings)):
        alone, exact = smooth(), smooth()
        for model, each in ((alone, settings), (exact, replace(settings, precision="float32"))):
            train_(model, *examples(k, sizes[k]), ONE, each, np.random.default_rng(k), ruled=ruled)
        assert {value.dtype for value in together.values()} == {torch.float32}
        rounding = distance(state_of(alone), state_of(exact))
        assert 1e-4 < rounding < 0.1 * distance(start, state_of(exact))
        assert 0.2 * rounding < distance(together, state_of(exact)) < 5 * rounding
        assert distance(together, state_of(alone)) < 5 * rounding


def smooth() -> nn.Module:
    """Return a model without units that rounding could switch off."""
    model = net(torch.float32)
    model[2] = nn.Tanh()
    return model


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((value - other[name]).square().sum().item() for name, value in one.items()) ** 0.5
