"""The loop of a plain script with `torch.optim`: what local training must agree with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer

from fedsim.models.layers import Layers
from fedsim.training import LocalPlan, LocalSettings


def optimizer_of(settings: LocalSettings, parameters: Any) -> Optimizer:
    """Return the optimiser that the settings name, with torch's own steps, which are not fused."""
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay, "foreach": False}
    if settings.optimizer == "sgd":
        return SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    kind = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
    return kind(parameters, betas=settings.betas, eps=settings.eps, amsgrad=settings.amsgrad, **common)


def train_by_torch_(
    model: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    plan: LocalPlan,
    settings: LocalSettings,
    rngs: Sequence[np.random.Generator],
    *,
    optimizer: Optimizer | None = None,
    after: Sequence[Callable[[], Any]] = (),
    before: Sequence[Callable[[nn.Module], Any]] = (),
    label_smoothing: float = 0.0,
) -> Optimizer:
    """Train in place, one round per random stream, with one optimiser for all of them.

    Parameters
    ----------
    before, after
        What is called before each step with the model, whose gradients are there, and after it.
    """
    layers = Layers.of(model)
    optimizer = optimizer or optimizer_of(settings, model.parameters())
    for rng in rngs:
        for phase in plan.phases:
            trained = layers.keys(layers.group(phase.trainable), buffers=False)
            left = phase.steps or 10**9
            for _ in range(phase.epochs or (settings.epochs if phase.steps is None else 10**9)):
                order = torch.from_numpy(rng.permutation(len(targets)))
                for chosen in order.split(settings.batch_size)[:left]:
                    optimizer.zero_grad()
                    loss = cross_entropy(model(inputs[chosen]), targets[chosen], label_smoothing=label_smoothing)
                    loss.backward()
                    for name, parameter in model.named_parameters():
                        if name not in trained:
                            parameter.grad = None
                    for change in before:
                        change(model)
                    optimizer.step()
                    for step in after:
                        step()
                    left -= 1
                if left <= 0:
                    break
    return optimizer
