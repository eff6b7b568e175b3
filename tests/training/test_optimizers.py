"""Each optimiser is torch's: alone, over phases and rounds, in a cohort, and in half precision."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.models.params import state_of
from fedsim.training import ClientRule, LocalPlan, LocalSettings, LocalTask, Phase, Ruled, train_, train_cohort
from tests.training.torch_loop import train_by_torch_

PHASES = LocalPlan((Phase("head", epochs=1), Phase("all", steps=5)))
OPTIMIZERS = {
    "sgd": LocalSettings(2, 5, 0.1, 0.9, 0.01, nesterov=True),
    "adam": LocalSettings(2, 5, 0.01, weight_decay=0.1, optimizer="adam", betas=(0.8, 0.95), eps=1e-6),
    "amsgrad": LocalSettings(2, 5, 0.01, optimizer="adam", amsgrad=True),
    "adamw": LocalSettings(2, 5, 0.01, weight_decay=0.1, optimizer="adamw"),
}
EACH = pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv, head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)
        return nn.Sequential(conv, nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), head).to(dtype)


def data(client: int = 0, n: int = 23, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(client)
    inputs = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, 3, (n,), generator=generator)


def assert_equal(model: nn.Module, reference: nn.Module, tolerance: float) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance), name


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_an_optimiser_is_torchs_over_two_phases_and_kept_over_two_rounds(
    settings: LocalSettings, dtype: torch.dtype, tolerance: float
) -> None:
    model, examples = net(dtype), data(dtype=dtype)
    reference, state = copy.deepcopy(model), {}
    train_by_torch_(reference, *examples, PHASES, settings, [np.random.default_rng(k) for k in (3, 4)])
    for k in (3, 4):
        state = train_(model, *examples, PHASES, settings, np.random.default_rng(k), state).optimizer_state
    assert_equal(model, reference, tolerance)
    if settings.optimizer != "sgd":
        # Five mini-batches of the head, then five of all layers, in two rounds.
        assert state["step/4.weight"] == 20
        assert state["step/0.weight"] == 10


@EACH
def test_without_a_state_each_round_begins_with_a_new_optimiser(settings: LocalSettings) -> None:
    model, examples = net(), data()
    reference = copy.deepcopy(model)
    for k in (3, 4):
        train_by_torch_(reference, *examples, PHASES, settings, [np.random.default_rng(k)])
        train_(model, *examples, PHASES, settings, np.random.default_rng(k))
    assert_equal(model, reference, 1e-12)


@EACH
def test_members_with_more_and_fewer_steps_behind_them_train_in_a_cohort_as_alone(settings: LocalSettings) -> None:
    # The third has taken part before and the second has not; two have equally many examples.
    sizes, start = (12, 12, 23, 4), state_of(net())
    before = train_(net(), *data(9), PHASES, settings, np.random.default_rng(9)).optimizer_state
    states = [{}, {}, before, before]
    wanted = []
    for k, (n, state) in enumerate(zip(sizes, states, strict=True)):
        model = net()
        training = train_(model, *data(k, n), PHASES, settings, np.random.default_rng(k), state)
        wanted.append((state_of(model), training.optimizer_state))
    tasks = [LocalTask(start, *data(k, sizes[k]), np.random.default_rng(k), states[k]) for k in range(4)]
    for (params, training), (alone, state) in zip(train_cohort(net(), tasks, PHASES, settings), wanted, strict=True):
        assert training.optimizer_state.keys() == state.keys()
        for one, other in ((params, alone), (training.optimizer_state, state)):
            for name, value in one.items():
                assert torch.allclose(value, other[name], rtol=0, atol=1e-12), name


@EACH
def test_a_set_has_an_optimiser_of_its_own_apart_from_the_models(settings: LocalSettings) -> None:
    model, examples = net(), data()
    start = {name: value.clone() for name, value in state_of(model).items()}
    plan = LocalPlan((Phase(epochs=1), Phase(epochs=1, trains="personal")))
    ruled = Ruled(ClientRule(model), {"personal": start})
    result = train_(model, *examples, plan, settings, np.random.default_rng(0), ruled=ruled)
    rng = np.random.default_rng(0)
    for found in (state_of(model), result.sets["personal"]):
        reference = net()
        train_by_torch_(reference, *examples, LocalPlan((Phase(epochs=1),)), settings, [rng])
        assert all(
            torch.allclose(found[name], value, rtol=0, atol=1e-12) for name, value in state_of(reference).items()
        )
    assert sum("personal/" in name for name in result.optimizer_state) * 2 == len(result.optimizer_state)


@EACH
def test_a_kept_state_and_gradients_may_have_other_strides_than_the_parameters(settings: LocalSettings) -> None:
    # Fused steps take for granted that they have the same.
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    inputs, targets = data(n=20)[0].repeat(1, 3, 1, 1), data(n=20)[1]
    states: list[dict] = [{}, {}]
    for k in range(2):
        for place, model in enumerate((plain, last)):
            state = train_(model, inputs, targets, LocalPlan(), settings, np.random.default_rng(k), states[place])
            states[place] = {name: value.contiguous() for name, value in state.optimizer_state.items()}
    assert not last[0].weight.is_contiguous()
    assert_equal(last, plain, 1e-12)


@EACH
def test_weights_of_bfloat16_are_rounded_as_torch_rounds_them(settings: LocalSettings) -> None:
    model, examples = net(torch.bfloat16), data(dtype=torch.bfloat16)
    reference = copy.deepcopy(model)
    train_by_torch_(reference, *examples, LocalPlan(), settings, [np.random.default_rng(0)])
    train_(model, *examples, LocalPlan(), settings, np.random.default_rng(0))
    assert_equal(model, reference, 0)
