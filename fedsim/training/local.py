"""Local training of one model: a pure function of the model, the data and a random stream."""

from collections.abc import Collection
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.sgd import sgd

from fedsim.layers import Layers
from fedsim.params import Params
from fedsim.training.augmentation import Augmentation
from fedsim.training.batches import Batch, Batches, Member
from fedsim.training.dropout import seeded_modules, set_streams_
from fedsim.training.plan import SGD, LocalPlan, Phase, Training


def train_(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: LocalPlan,
    settings: SGD,
    rng: np.random.Generator,
    momentum: Params | None = None,
    augmentation: Augmentation | None = None,
) -> Training:
    """Train ``model`` in place by mini-batch SGD on cross-entropy.

    Parameters
    ----------
    inputs, targets
        Normalised inputs, shape [n, ...], and class indices, shape [n] or [n, length], on the model's device. n is at
        least 1.
    plan
        What is trained; layers that a phase does not train stay as they are, running statistics included.
    rng
        Draws the order of the examples, and the numbers of their augmentation, anew for each epoch.
    momentum
        Buffers to start from; zeros without.
    augmentation
        Of images; none without.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be read or holds no parameter.
    """
    learner = _Single(model)
    batches = Batches([Member(inputs, targets, rng)], model, settings.batch_size, augmentation, len(learner.dropouts))
    kept = {name: value.to(targets.device, copy=True) for name, value in (momentum or {}).items()}
    losses, seen = follow_plan(model, learner, batches, plan, settings, kept)
    return Training(losses[0], int(seen[0]), kept)


class Learner(Protocol):
    """What is trained: one model, or the stacked parameters of several members."""

    def leaves(self, names: Collection[str], active: int) -> Params:
        """Return the parameters of these names, of the first ``active`` members, as leaves that take gradients."""

    def first(self, value: Tensor, active: int) -> Tensor:
        """Return what belongs to the first ``active`` members of a tensor that is shaped like a parameter."""

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradients of each member's mean loss to the leaves; return these losses, detached."""


class _Single:
    """A model's own parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self.dropouts = list(seeded_modules(model).values())

    def leaves(self, names: Collection[str], active: int) -> Params:
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in names)
        return {name: parameter for name, parameter in self._parameters.items() if name in names}

    def first(self, value: Tensor, active: int) -> Tensor:
        return value

    def backward(self, batch: Batch) -> Tensor:
        if batch.streams is not None:
            set_streams_(self.dropouts, batch.streams[0])
        loss = cross_entropy(self._model(batch.inputs), batch.targets)
        loss.backward()
        return loss.detach()


def follow_plan(
    model: nn.Module, learner: Learner, batches: Batches, plan: LocalPlan, settings: SGD, momentum: Params
) -> tuple[list[float], np.ndarray]:
    """Train all members through the plan's phases.

    Parameters
    ----------
    model
        Has the layers that phases name, and the mode that they train in; in the end it is in evaluation mode.
    momentum
        Buffers by parameter name, changed in place.

    Returns
    -------
    list of float, array
        Each member's mean loss over its last epoch (or the last phase's steps), and the examples that it has seen.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be read or holds no parameter.
    """
    layers = Layers.of(model)
    losses, seen = [float("nan")] * len(batches), np.zeros(len(batches), dtype=np.int64)
    for phase in plan.phases:
        group = layers.group(phase.trainable)
        if not (trainable := set(layers.keys(group, buffers=False))):
            raise ValueError(f"a phase trains {phase.trainable!r}, which holds no parameter")
        model.train()
        for name, module in model.named_modules():
            if isinstance(module, _NormBase) and name not in group:
                module.eval()  # a frozen layer's running statistics stay as they are
        losses, phase_seen = _run_phase(learner, batches, phase, settings, trainable, momentum)
        seen += phase_seen
    model.eval()
    return losses, seen


def _run_phase(
    learner: Learner, batches: Batches, phase: Phase, settings: SGD, trainable: Collection[str], momentum: Params
) -> tuple[list[float], np.ndarray]:
    """Run one phase; update ``momentum`` in place; return each member's mean loss and the examples that it has seen."""
    if phase.steps is None:
        steps = (phase.epochs or settings.epochs) * batches.lengths
        counted_from = steps - batches.lengths  # the last epoch
    else:
        steps, counted_from = np.full(len(batches), phase.steps), np.zeros(len(batches), dtype=np.int64)
    account = _LossAccount(counted_from)
    seen = np.zeros(len(batches), dtype=np.int64)
    active = 0
    start: Params = {}
    for step in range(steps.max()):
        if active == 0 or steps[active - 1] == step:
            # Members with fewer batches come last, so those that go on are always the first ones.
            active = int((steps > step).sum())
            leaves = learner.leaves(trainable, active)
            if step == 0:
                start = {name: leaf.detach().clone() for name, leaf in leaves.items()} if phase.proximal else {}
                if settings.momentum:
                    missing = {name: torch.zeros_like(leaf) for name, leaf in leaves.items() if name not in momentum}
                    momentum.update(missing)
            velocity = {name: learner.first(value, active) for name, value in momentum.items() if name in leaves}
            origin = {name: learner.first(value, active) for name, value in start.items()}
        batch = batches.take(step, active)
        for leaf in leaves.values():
            leaf.grad = None
        account.add(step, learner.backward(batch), batch.counts)
        seen[:active] += batch.counts
        with torch.no_grad():
            for name, value in origin.items():
                if (gradient := leaves[name].grad) is not None:
                    gradient.add_(leaves[name] - value, alpha=phase.proximal)
            _descend_(leaves, velocity, settings)
    return account.means(), seen


def _descend_(leaves: Params, velocity: Params, settings: SGD) -> None:
    """Take a step of SGD with the leaves' gradients, as `torch.optim.SGD` does."""
    names = [name for name, leaf in leaves.items() if leaf.grad is not None]
    sgd(
        [leaves[name] for name in names],
        [leaves[name].grad for name in names],  # type: ignore[misc]
        [velocity.get(name) for name in names],
        fused=True,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        dampening=0.0,
        nesterov=settings.nesterov,
        maximize=False,
    )


class _LossAccount:
    """Adds up each member's losses, at the end, so that no step waits for the device.

    Parameters
    ----------
    counted_from
        Each member's first step whose loss counts.
    """

    def __init__(self, counted_from: np.ndarray) -> None:
        self._from = counted_from
        self._losses: list[Tensor] = []
        self._counts: list[np.ndarray] = []  # examples of each active member; 0 where its loss does not count

    def add(self, step: int, losses: Tensor, counts: np.ndarray) -> None:
        counts = np.where(self._from[: len(counts)] <= step, counts, 0)
        if counts.any():
            self._losses.append(losses.reshape(-1))
            self._counts.append(counts)

    def means(self) -> list[float]:
        losses = torch.cat(self._losses).double().cpu().numpy()
        members, counts = (np.concatenate(each) for each in ([np.arange(len(c)) for c in self._counts], self._counts))
        members, counts, losses = members[counts > 0], counts[counts > 0], losses[counts > 0]
        return (np.bincount(members, losses * counts) / np.bincount(members, counts)).tolist()
