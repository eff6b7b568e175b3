"""An optimiser of the user's own: torch's others, as a plain loop with them, and what could not be continued."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from fedsim.models.params import flat_copy, state_of
from fedsim.strategy.messages import decode, encode
from fedsim.training import ClientRule, LocalPlan, LocalSettings, LocalTask, Phase, Ruled, train_, train_cohort
from tests.training.test_optimizers import PHASES, assert_equal, data, net
from tests.training.torch_loop import train_by_torch_

Made = Callable[[Any, float], torch.optim.Optimizer]
MOMENTUM = LocalSettings(2, 5, 0.1, 0.9)


class Counted(torch.optim.SGD):
    """Keeps a number, a tensor and nothing in its state of each parameter."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["steps"] = state.get("steps", 0) + 1
                    state["rate"] = state.get("rate", 1.0) / 2
                    state["nothing"] = None
                    with torch.no_grad():
                        parameter.add_(parameter.grad, alpha=-group["lr"] * (state["rate"] + 0.1 * state["steps"]))


def made(make: Any, **options: Any) -> Made:
    return lambda params, lr: make(params, lr=lr, **options)


OWN: dict[str, Made] = {
    "rmsprop": made(torch.optim.RMSprop, momentum=0.5, centered=True, weight_decay=0.1),
    "adagrad": made(torch.optim.Adagrad, lr_decay=0.1),
    "nadam": made(torch.optim.NAdam),
    "counted": made(Counted, momentum=0.9),
}
EACH = pytest.mark.parametrize("make", OWN.values(), ids=OWN)


def sent(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state as a client keeps it from one round to the next."""
    return decode(encode(flat_copy(state)))


@EACH
def test_it_steps_as_in_a_plain_loop_over_two_phases_and_kept_over_two_rounds(make: Made) -> None:
    model, examples = net(), data()
    reference, state = copy.deepcopy(model), {}
    settings = LocalSettings(2, 5, 0.01, optimizer=make, optimizer_state="keep")
    train_by_torch_(
        reference,
        *examples,
        PHASES,
        settings,
        [np.random.default_rng(k) for k in (3, 4)],
        optimizer=make(list(reference.parameters()), 0.01),
    )
    for k in (3, 4):
        state = sent(train_(model, *examples, PHASES, settings, np.random.default_rng(k), state).optimizer_state)
    assert_equal(model, reference, 1e-12)


def test_torchs_sgd_by_name_takes_the_steps_of_local_with_factors_schedule_and_clipping() -> None:
    common = replace(MOMENTUM, lr_scale={"head": 3.0}, schedule="cosine", clip_norm=0.5)
    ours, other = net(), net()
    train_(ours, *data(), PHASES, common, np.random.default_rng(0))
    own = replace(common, momentum=0.0, optimizer=made(torch.optim.SGD, momentum=0.9))
    train_(other, *data(), PHASES, own, np.random.default_rng(0))
    assert_equal(other, ours, 1e-12)
    reference = net()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    schedule = [CosineAnnealingLR(optimizer, 10).step]
    rngs = [np.random.default_rng(0)]
    train_by_torch_(reference, *data(), PHASES, MOMENTUM, rngs, optimizer=optimizer, after=schedule)
    plain = LocalSettings(2, 5, 0.1, schedule="cosine", optimizer=made(torch.optim.SGD, momentum=0.9))
    model = net()
    train_(model, *data(), PHASES, plain, np.random.default_rng(0))
    assert_equal(model, reference, 1e-12)


def test_a_proximal_term_and_a_set_are_trained_as_with_the_optimiser_of_local() -> None:
    plan = LocalPlan((Phase(epochs=1, proximal=0.5), Phase(epochs=1, trains="personal")))
    found = []
    for settings in (MOMENTUM, replace(MOMENTUM, momentum=0.0, optimizer=made(torch.optim.SGD, momentum=0.9))):
        model = net()
        start = {name: value.clone() for name, value in state_of(model).items()}
        ruled = Ruled(ClientRule(model), {"personal": start})
        result = train_(model, *data(), plan, settings, np.random.default_rng(0), ruled=ruled)
        found.append({**state_of(model), **{f"of {name}": value for name, value in result.sets["personal"].items()}})
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=0, atol=1e-12), name


def test_rows_of_an_embedding_without_a_gradient_are_dense_zeros() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3)).double()
    reference = copy.deepcopy(model)
    reference[0].sparse = False
    inputs, targets = torch.arange(8).reshape(4, 2), torch.tensor([0, 1, 2, 0])
    settings = LocalSettings(batch_size=2, lr=0.1, optimizer=made(torch.optim.Adagrad))
    for each in (model, reference):
        train_(each, inputs, targets, LocalPlan(), settings, np.random.default_rng(0))
    assert_equal(model, reference, 0)


class Attribute(torch.optim.SGD):
    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        super().step()


class Ready(Attribute):
    """Begins with a state, as torch's Adagrad does."""

    def __init__(self, params: Any, lr: float, momentum: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class InGroups(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        self.param_groups[0]["d"] = self.param_groups[0].get("d", torch.ones(())) * 2
        super().step()


@pytest.mark.parametrize(("make", "key"), [(Attribute, "'steps'"), (Ready, "'steps'"), (InGroups, "'d'")])
def test_what_no_later_round_or_phase_would_continue_is_an_error_there_only(make: Any, key: str) -> None:
    once, twice = LocalPlan((Phase("head"), Phase("0"))), LocalPlan((Phase("all"), Phase("head")))
    settings = LocalSettings(1, 5, 0.1, optimizer=made(make, momentum=0.9))
    train_(net(), *data(), once, settings, np.random.default_rng(0))
    for plan, wrong in ((twice, settings), (once, replace(settings, optimizer_state="keep"))):
        with pytest.raises(ValueError, match=f"keeps {key} for all parameters together"):
            train_(net(), *data(), plan, wrong, np.random.default_rng(0))


def test_what_is_no_optimiser_of_all_parameters_of_one_model_is_an_error() -> None:
    def one(make: Any) -> None:
        settings = LocalSettings(1, 5, 0.1, optimizer=make)
        train_(net(), *data(), LocalPlan(), settings, np.random.default_rng(0))

    with pytest.raises(ValueError, match="gives an int"):
        one(lambda params, lr: 3)
    with pytest.raises(ValueError, match=r"leaves out 4\.bias"):
        one(lambda params, lr: torch.optim.SGD(params[0]["params"][:-1], lr=lr))

    class Texts(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.state[self.param_groups[0]["params"][0]]["note"] = "text"

    with pytest.raises(ValueError, match="keeps a str as 'note' of a parameter"):
        one(made(Texts))
    tasks = [LocalTask(state_of(net()), *data(k), np.random.default_rng(k)) for k in range(2)]
    with pytest.raises(ValueError, match="one client at a time"):
        train_cohort(net(), tasks, LocalPlan(), LocalSettings(1, 5, 0.1, optimizer=OWN["rmsprop"]))
    with pytest.raises(ValueError, match=r"weight_decay = 0\.1: belongs to"):
        LocalSettings(weight_decay=0.1, optimizer=OWN["rmsprop"])
