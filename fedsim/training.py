"""Local training of one model: a pure function of the model, the data and a random stream."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase

from fedsim.data.augmentation import Augmentation
from fedsim.layers import Layers
from fedsim.params import Params


@dataclass(frozen=True)
class Phase:
    """One stretch of local training.

    Parameters
    ----------
    trainable
        Layer group that is trained; all other layers are frozen.
    epochs, steps
        Passes over the client's examples, or mini-batches; at most one of them. Without either: the epochs of
        the run's ``[local]`` settings.
    proximal
        Weight mu of (mu / 2) ||w - w_start||^2 over the trained layers, added to the loss (FedProx,
        arXiv 1812.06127).

    Raises
    ------
    ValueError
        If both epochs and steps are given, one of them is not positive, or ``proximal`` is negative.
    """

    trainable: str = "all"
    epochs: int | None = None
    steps: int | None = None
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"a phase has epochs = {self.epochs} and steps = {self.steps}; give one of them")
        if any(count is not None and count < 1 for count in (self.epochs, self.steps)):
            raise ValueError(f"a phase has epochs = {self.epochs}, steps = {self.steps}; it must be at least 1")
        if self.proximal < 0:
            raise ValueError(f"proximal = {self.proximal} must not be negative")


@dataclass(frozen=True)
class LocalPlan:
    """What a client does in one round: phases, one after the other."""

    phases: tuple[Phase, ...] = (Phase(),)


@dataclass(frozen=True)
class SGD:
    """Settings of the local optimiser.

    Parameters
    ----------
    epochs
        Passes over the client's training examples in a phase that does not say otherwise.
    batch_size
        Examples in a mini-batch; the last one of an epoch may be smaller, none is dropped.
    lr, momentum, weight_decay, nesterov
        As in `torch.optim.SGD`.
    optimizer_state
        ``reset`` starts the momentum at zero each round, ``keep`` takes it from the client's last one.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    optimizer_state: Literal["reset", "keep"] = "reset"


@dataclass(frozen=True)
class Training:
    """What local training reports.

    Parameters
    ----------
    loss
        Mean cross-entropy in nats over the examples of the last epoch (or the last phase's steps), each taken
        before the step that it led to.
    examples_seen
        Examples passed forward and backward.
    momentum
        Momentum buffers by parameter name; empty without momentum.
    """

    loss: float
    examples_seen: int
    momentum: Params = field(default_factory=dict)


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
    layers = Layers.of(model)
    buffers = dict(momentum or {})
    loss, seen = float("nan"), 0
    for phase in plan.phases:
        group = layers.group(phase.trainable)
        if not (trainable := set(layers.keys(group, buffers=False))):
            raise ValueError(f"a phase trains {phase.trainable!r}, which holds no parameter")
        model.train()
        for name, module in model.named_modules():
            if isinstance(module, _NormBase) and name not in group:
                module.eval()  # a frozen layer's running statistics stay as they are
        loss, phase_seen = _train_phase(model, inputs, targets, phase, settings, rng, trainable, buffers, augmentation)
        seen += phase_seen
    model.eval()
    return Training(loss, seen, buffers)


def _train_phase(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    phase: Phase,
    settings: SGD,
    rng: np.random.Generator,
    trainable: Collection[str],
    buffers: Params,
    augmentation: Augmentation | None,
) -> tuple[float, int]:
    """Run one phase; update ``buffers`` in place; return the last epoch's mean loss and the examples seen."""
    trained: Params = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
        if name in trainable:
            trained[name] = parameter
    optimizer = _optimizer(trained, settings, buffers)
    regularise = _proximal_gradient(list(trained.values()), phase.proximal)
    n, seen, steps = len(targets), 0, 0
    batches = _batches(model, n, settings.batch_size)
    total_steps = phase.steps or (phase.epochs or settings.epochs) * len(batches)
    loss_sum = torch.zeros((), dtype=torch.float64, device=targets.device)
    counted = 0
    while steps < total_steps:
        order = torch.from_numpy(rng.permutation(n)).to(targets.device)
        epoch_inputs, epoch_targets = inputs[order], targets[order]
        if augmentation:
            epoch_inputs = augmentation.apply(epoch_inputs, rng)
        if phase.steps is None:
            loss_sum.zero_()
            counted = 0
        for batch in batches:
            batch_targets = epoch_targets[batch]
            optimizer.zero_grad()
            loss = cross_entropy(model(epoch_inputs[batch]), batch_targets)
            loss.backward()
            regularise()
            optimizer.step()
            loss_sum += loss.detach().double() * len(batch_targets)
            counted += len(batch_targets)
            seen += len(batch_targets)
            steps += 1
            if steps == total_steps:
                break
    for name, tensor in trained.items():
        if (buffer := optimizer.state[tensor].get("momentum_buffer")) is not None:
            buffers[name] = buffer
    return float(loss_sum / counted), seen


def _batches(model: nn.Module, n: int, size: int) -> list[slice]:
    """Cut n examples into batches; none is dropped.

    Batch normalisation has no statistics over a single example, so with it a last batch of one joins the one before.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1 and any(isinstance(m, _NormBase) for m in model.modules()):
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], n], strict=True)]


def _optimizer(trained: Params, settings: SGD, buffers: Params) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(
        trained.values(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
        fused=True,
    )
    for name, parameter in trained.items():
        if name in buffers:
            optimizer.state[parameter]["momentum_buffer"] = buffers[name].to(parameter.device, copy=True)
    return optimizer


def _proximal_gradient(parameters: list[Tensor], weight: float) -> Callable[[], None]:
    """Return a function that adds the gradient of (weight / 2) ||w - w_start||^2."""
    if weight == 0:
        return lambda: None
    start = [parameter.detach().clone() for parameter in parameters]

    def add_gradient() -> None:
        with torch.no_grad():
            for parameter, origin in zip(parameters, start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - origin, alpha=weight)

    return add_gradient


def recompute_buffers_(model: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """Set batch normalisation's running statistics to the mean over batches of ``inputs``, in place.

    The weights stay as they are. Models without running statistics are left alone.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain average over all batches
    model.train()
    try:
        with torch.no_grad():
            for batch in _batches(model, len(inputs), batch_size):
                model(inputs[batch])
    finally:
        model.eval()
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
