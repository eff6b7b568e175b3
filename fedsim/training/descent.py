"""The phases of a plan, step by step, for one model and for a cohort."""

from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from fedsim.models.layers import Layers
from fedsim.models.norms import StatisticsNorm
from fedsim.models.params import Params, dense
from fedsim.training.account import Account
from fedsim.training.batches import Batches
from fedsim.training.learner import Learner
from fedsim.training.optimizer import Optimizer
from fedsim.training.own_optimizer import OwnOptimizer
from fedsim.training.parameter_groups import parameter_groups
from fedsim.training.plan import LocalPlan, Phase
from fedsim.training.rule import Position
from fedsim.training.schedule import RoundOf, Schedule
from fedsim.training.settings import LocalSettings


def follow_plan(
    model: nn.Module,
    learner: Learner,
    batches: Batches,
    plan: LocalPlan,
    settings: LocalSettings,
    state: Params,
    at: RoundOf | None,
) -> Account:
    """Train all members through the plan's phases, and return their account.

    Parameters
    ----------
    model
        Model that is in training mode meanwhile; it ends in evaluation mode.
    state
        What the optimiser keeps, by name, changed in place.
    at
        As in `fedsim.training.train_`.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be parsed or holds no parameter, or it names an unknown set, or if an
        ``lr_scale`` cannot be read.
    """
    account, layers = Account(len(batches)), Layers.of(model)
    schedule = Schedule(settings, plan, batches.lengths, at or RoundOf())
    for phase in plan.phases:
        group = layers.group(phase.trainable)
        if not (trainable := set(layers.keys(group, buffers=False))):
            raise ValueError(f"a phase trains {phase.trainable!r}, which holds no parameter")
        model.train()
        for name, module in model.named_modules():
            if isinstance(module, StatisticsNorm) and name not in group:
                module.eval()  # a frozen layer's running statistics do not change
        learner.select(phase.trains)
        of = "" if phase.trains == "model" else f"{phase.trains}/"
        make = OwnOptimizer if callable(settings.optimizer) else Optimizer
        optimizer = make(settings, learner, parameter_groups(layers, settings, phase), state, of)
        _run_phase(learner, batches, phase, trainable, optimizer, schedule, account)
    learner.select("model")
    model.eval()
    return account


def _run_phase(
    learner: Learner,
    batches: Batches,
    phase: Phase,
    trainable: Collection[str],
    optimizer: Optimizer | OwnOptimizer,
    schedule: Schedule,
    account: Account,
) -> None:
    """Run one phase; update ``account`` in place."""
    steps = schedule.begin(phase)
    counted_from = steps - batches.lengths if phase.steps is None else np.zeros_like(steps)  # the last epoch
    account.begin(counted_from, of_model=phase.trains == "model")
    active = 0
    start: Params = {}
    for step in range(steps.max()):
        if active == 0 or steps[active - 1] == step:
            # Members with fewer batches come last, so those that continue are always the first ones.
            active = int((steps > step).sum())
            leaves = learner.leaves(trainable, active)
            if step == 0:
                start = _origin(learner, phase, leaves, trainable, active)
            optimizer.begin(leaves, schedule.differ[:active])
            origin = {name: learner.part(value, 0, active) for name, value in start.items()}
        batch = batches.take(step, active)
        for leaf in leaves.values():
            leaf.grad = None
        lr_of = schedule.lr_of(step)
        losses = learner.backward(batch, Position(phase, step, lr_of))
        account.add(step, losses, batch.counts, learner.passes, batch.weights)
        with torch.no_grad():
            gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
            if origin:
                gradients = dense(gradients)
            for name, value in origin.items():
                if name in gradients:
                    gradients[name].add_(leaves[name] - value, alpha=phase.proximal)
            optimizer.step_(gradients, lr_of)


def _origin(learner: Learner, phase: Phase, leaves: Params, trainable: Collection[str], active: int) -> Params:
    """Return the values that the phase's proximal term pulls towards; none if it has no such term."""
    if not phase.proximal:
        return {}
    values = leaves if phase.toward == "start" else learner.value_of(phase.toward, active)
    return {name: values[name].detach().clone() for name in leaves if name in trainable}
