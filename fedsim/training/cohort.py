"""Local training of many clients as one vectorised computation."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase

from fedsim.params import Params
from fedsim.training.augmentation import Augmentation
from fedsim.training.batches import Batch, Batches, Member, cut_batches
from fedsim.training.dropout import seeded_modules
from fedsim.training.local import follow_plan
from fedsim.training.plan import SGD, LocalPlan, Training
from fedsim.training.stack import forward_of, member_of, stack


@dataclass(frozen=True)
class LocalTask:
    """One client's local training.

    Parameters
    ----------
    params
        Where training starts: all entries of `fedsim.params.state_of`.
    inputs, targets, rng, momentum
        As in `fedsim.training.train_`.
    """

    params: Params
    inputs: Tensor
    targets: Tensor
    rng: np.random.Generator
    momentum: Params = field(default_factory=dict)


def train_cohort(
    model: nn.Module,
    tasks: Sequence[LocalTask],
    plan: LocalPlan,
    settings: SGD,
    augmentation: Augmentation | None = None,
) -> list[tuple[Params, Training]]:
    """Train many clients side by side; each result is that of `train_` alone, to float tolerance.

    Clients may have different numbers of examples: each takes the batches and the number of steps that it takes alone.

    Parameters
    ----------
    model
        Gives the architecture and the device; its own weights do not matter, and may change.

    Returns
    -------
    list of (Params, Training)
        In the order of ``tasks``: all entries after training, and what `train_` reports. Tensors are views of those of
        the whole cohort.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be read or holds no parameter.
    RuntimeError
        If the model cannot be trained as a cohort; `cohort_problem` says so beforehand.
    """
    steps = [len(cut_batches(model, len(task.targets), settings.batch_size)) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda i: -steps[i])
    tasks = [tasks[i] for i in order]
    stacked = _Stack(model, [task.params for task in tasks], tasks[0].targets.device)
    members = [Member(task.inputs, task.targets, task.rng) for task in tasks]
    batches = Batches(members, model, settings.batch_size, augmentation, len(stacked.dropouts))
    momentum = _stacked_momentum([task.momentum for task in tasks], stacked.params)
    losses, seen = follow_plan(model, stacked, batches, plan, settings, momentum)
    results = {
        i: (member_of(stacked.params, k), Training(losses[k], int(seen[k]), member_of(momentum, k)))
        for k, i in enumerate(order)
    }
    return [results[i] for i in range(len(tasks))]


def _stacked_momentum(members: Sequence[Params], params: Params) -> Params:
    """Return all buffers that any member has, with zeros for those that have none."""
    names = {name: None for member in members for name in member}
    zeros = {name: torch.zeros_like(params[name][0]) for name in names}
    filled = [zeros | {name: value.to(zeros[name].device) for name, value in member.items()} for member in members]
    return stack(filled, next(iter(params.values())).device)


class _Stack:
    """The stacked parameters and buffers of all members, as `fedsim.training.follow_plan` trains them."""

    def __init__(self, model: nn.Module, members: Sequence[Params], device: torch.device) -> None:
        self._model = model
        self._forward = forward_of(model)
        self.params = stack(members, device)
        self.dropouts = seeded_modules(model)
        self._buffers = [name for name, _ in model.named_buffers() if name in self.params]
        self._leaves: Params = {}

    def leaves(self, names: Collection[str], active: int) -> Params:
        # The leaves share their memory with the stack, so steps on them are steps on it.
        self._leaves = {
            name: value[:active].detach().requires_grad_() for name, value in self.params.items() if name in names
        }
        return self._leaves

    def first(self, value: Tensor, active: int) -> Tensor:
        return value[:active]

    def backward(self, batch: Batch) -> Tensor:
        active = len(batch.counts)
        params = {name: value[:active] for name, value in self.params.items()} | self._leaves
        if batch.streams is not None:
            for path, numbers in zip(self.dropouts, batch.streams.unbind(1), strict=True):
                params[f"{path}.stream"] = numbers
        if batch.real is not None and self._rows_mix():
            losses = self._by_size(params, batch)
        else:
            losses = self._losses(params, batch.inputs, batch.targets, batch.real)
        losses.sum().backward()
        return losses.detach()

    def _losses(self, params: Params, inputs: Tensor, targets: Tensor, real: Tensor | None) -> Tensor:
        """Return each member's mean loss over its real rows."""
        for module in self.dropouts.values():
            module.calls = 0
        logits = self._forward(params, inputs)
        losses = cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none")
        losses = losses.view(*targets.shape[:2], -1).mean(2)
        if real is None:
            return losses.mean(1)
        return torch.where(real, losses, 0).sum(1) / real.sum(1)

    def _rows_mix(self) -> bool:
        """Tell whether an example's output depends on the other examples of its batch."""
        return any(isinstance(module, _NormBase) and module.training for module in self._model.modules())

    def _by_size(self, params: Params, batch: Batch) -> Tensor:
        """Return each member's mean loss, members with equally many examples together, so that none is padded."""
        losses, members = [], []
        for size in np.unique(batch.counts):
            chosen = torch.from_numpy(np.flatnonzero(batch.counts == size)).to(batch.targets.device)
            part = {name: value.index_select(0, chosen) for name, value in params.items()}
            losses.append(self._losses(part, batch.inputs[chosen, :size], batch.targets[chosen, :size], None))
            members.append(chosen)
            for name in self._buffers:  # statistics that the forward pass has changed
                params[name].index_copy_(0, chosen, part[name])
        return torch.cat(losses)[torch.cat(members).argsort()]
