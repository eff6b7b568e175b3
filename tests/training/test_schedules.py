"""Step sizes follow torch's schedules, over the run or in each round, for each client by its own steps."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR, StepLR

from fedsim.models.params import state_of
from fedsim.training import (
    ClientRule,
    LocalPlan,
    LocalSettings,
    LocalTask,
    Phase,
    Ruled,
    Step,
    train_,
    train_cohort,
)
from fedsim.training.schedule import RoundOf
from tests.training.test_optimizers import assert_equal, data, net
from tests.training.torch_loop import optimizer_of, train_by_torch_

PHASES = LocalPlan((Phase("head", epochs=1), Phase("all", steps=4)))  # 9 steps with 23 examples by fives
SCHEDULES = {
    "constant": {},
    "cosine": {"end_factor": 0.1},
    "linear": {"end_factor": 0.2},
    "step": {"step_size": 4, "gamma": 0.5},
}


def by_torch(settings: LocalSettings, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
    left = total - settings.warmup
    after = {
        "constant": lambda: ConstantLR(optimizer, 1.0),
        "cosine": lambda: CosineAnnealingLR(optimizer, left, settings.end_factor * settings.lr),
        "linear": lambda: LinearLR(optimizer, 1.0, settings.end_factor, left),
        "step": lambda: StepLR(optimizer, settings.step_size or 0, settings.gamma),
    }[settings.schedule]
    if not settings.warmup:
        return after()
    rise = LinearLR(optimizer, 1 / (settings.warmup + 1), 1.0, settings.warmup)
    return SequentialLR(optimizer, [rise, after()], [settings.warmup])


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # of SequentialLR's own call
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("over", ["run", "round"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_schedule_is_torchs_over_two_phases_and_three_rounds(
    optimizer: str, schedule: str, over: str, warmup: int
) -> None:
    settings = LocalSettings(
        batch_size=5, lr=0.02, optimizer=optimizer, schedule=schedule, schedule_over=over, warmup=warmup,
        **SCHEDULES[schedule],
    )  # fmt: skip
    model, examples, state = net(), data(), {}
    reference = copy.deepcopy(model)
    theirs = optimizer_of(settings, reference.parameters())
    scheduler = by_torch(settings, theirs, 27)
    for server_round in (1, 2, 3):
        rng = np.random.default_rng(server_round)
        if over == "round":
            for group in theirs.param_groups:
                group["lr"] = group["initial_lr"] = settings.lr
            scheduler = by_torch(settings, theirs, 9)
        train_by_torch_(reference, *examples, PHASES, settings, [rng], optimizer=theirs, after=[scheduler.step])
        rng, at = np.random.default_rng(server_round), RoundOf(server_round, 3)
        state = train_(model, *examples, PHASES, settings, rng, state, at=at).optimizer_state
    assert_equal(model, reference, 1e-12)


class Pulled(ClientRule):
    """Descends a loss that depends on the step size."""

    def loss(self, step: Step) -> torch.Tensor:
        return step.cross_entropy(step.logits(step.params)) * (1 + step.lr)


@pytest.mark.parametrize("rule", [ClientRule, Pulled])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_members_of_a_cohort_are_each_at_their_own_point_of_the_schedule(optimizer: str, rule: type) -> None:
    settings = LocalSettings(2, 5, 0.02, optimizer=optimizer, schedule="cosine", warmup=3)
    sizes, at, start = (12, 23, 11, 4), RoundOf(2, 3), state_of(net())
    ruled = Ruled(rule(net()))
    tasks = [LocalTask(start, *data(k, n), np.random.default_rng(k), ruled=ruled) for k, n in enumerate(sizes)]
    together = train_cohort(net(), tasks, LocalPlan(), settings, at=at)
    for k, (params, _) in enumerate(together):
        model, rng = net(), np.random.default_rng(k)
        train_(model, *data(k, sizes[k]), LocalPlan(), settings, rng, ruled=ruled, at=at)
        for name, value in state_of(model).items():
            assert torch.allclose(params[name], value, rtol=0, atol=1e-12), name


def test_a_phases_own_step_size_follows_the_schedule() -> None:
    settings = LocalSettings(1, 5, 0.02, schedule="cosine")
    ours, other = net(), net()
    train_(ours, *data(), LocalPlan((Phase(lr=0.1),)), settings, np.random.default_rng(0))
    train_(other, *data(), LocalPlan(), replace(settings, lr=0.1), np.random.default_rng(0))
    assert_equal(ours, other, 0)
