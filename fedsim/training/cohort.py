"""Local training of many clients as one vectorised computation."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.models.norms import StatisticsNorm
from fedsim.models.params import Params
from fedsim.training import checked
from fedsim.training.augmentation import Augmentation
from fedsim.training.batches import Batch, Batches, Member, cut_batches
from fedsim.training.context import Network, Step
from fedsim.training.descent import follow_plan
from fedsim.training.dropout import seeded_modules
from fedsim.training.learner import no_such_set, trained_entries
from fedsim.training.plan import LocalPlan, Passes, Training
from fedsim.training.precision import in_precision
from fedsim.training.rule import Position, Ruled
from fedsim.training.schedule import RoundOf
from fedsim.training.settings import LocalSettings
from fedsim.training.stack import forward_of, member_of, over_members, stack


@dataclass(frozen=True)
class LocalTask:
    """One client's local training.

    Parameters
    ----------
    params
        Parameters that training starts from: all entries of `fedsim.models.params.state_of`.
    inputs, targets, rng, optimizer_state
        As in `fedsim.training.train_`.
    ruled
        The client's rule, the same for all clients, with its sets, which have the same names for all, and the run's
        loss.
    """

    params: Params
    inputs: Tensor
    targets: Tensor
    rng: np.random.Generator
    optimizer_state: Params = field(default_factory=dict)
    ruled: Ruled = field(default_factory=Ruled)


def train_cohort(
    model: nn.Module,
    tasks: Sequence[LocalTask],
    plan: LocalPlan,
    settings: LocalSettings,
    augmentation: Augmentation | None = None,
    at: RoundOf | None = None,
) -> list[tuple[Params, Training]]:
    """Train many clients together; each result is that of `train_` alone, to float tolerance.

    Clients may have different numbers of examples: each takes the same batches and steps as alone.

    Parameters
    ----------
    model
        Model with the architecture and the device; its weights are not used, and may change.
    at
        As in `train_`.

    Returns
    -------
    list of (Params, Training)
        All entries after training and the report of `train_`, in the order of ``tasks``. Tensors are views of those of
        the whole cohort.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be parsed or holds no parameter, it names a set that the rule does not have, or
        an ``lr_scale`` cannot be read or names no parameter.
    RuntimeError
        If the model cannot be trained as a cohort; `cohort_problem` tests this in advance.
    """
    steps = [len(cut_batches(model, len(task.targets), settings.batch_size)) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda i: -steps[i])
    tasks = [tasks[i] for i in order]
    stacked = _Stack(model, tasks, settings)
    members = [Member(task.inputs, task.targets, task.rng) for task in tasks]
    batches = Batches(members, model, settings.batch_size, augmentation, len(stacked.dropouts))
    state = _stacked_state([task.optimizer_state for task in tasks], tasks[0].targets.device)
    account = follow_plan(model, stacked, batches, plan, settings, state, at)
    sets = [{name: member_of(entries, k) for name, entries in stacked.sets.items()} for k in range(len(tasks))]
    results = {
        i: (member_of(stacked.params, k), account.training(k, member_of(state, k), sets[k]))
        for k, i in enumerate(order)
    }
    return [results[i] for i in range(len(tasks))]


def _stacked_state(members: Sequence[Params], device: torch.device) -> Params:
    """Return all tensors that any member's optimiser keeps, with zeros for the members without."""
    zeros = {name: torch.zeros_like(value) for member in members for name, value in member.items()}
    return stack([zeros | member for member in members], device)


class _Stack:
    """The stacked parameters and buffers of all members, as `fedsim.training.descent.follow_plan` trains them."""

    def __init__(self, model: nn.Module, tasks: Sequence[LocalTask], settings: LocalSettings) -> None:
        device = tasks[0].targets.device
        self._model = model
        self._forward = in_precision(forward_of(model), settings.precision)
        self._precision = settings.precision
        self._ruled = [task.ruled for task in tasks]
        self._loss = self._ruled[0].training_loss.smoothed(settings.label_smoothing)
        self.stacked: tuple[int, ...] = (len(tasks),)
        weights = [own for ruled in self._ruled if (own := ruled.training_loss.class_weights) is not None]
        self._class_weights = torch.stack(weights) if weights else None
        self.params = stack([task.params for task in tasks], device)
        self.sets = {name: stack([ruled.sets[name] for ruled in self._ruled], device) for name in self._ruled[0].sets}
        self.dropouts = seeded_modules(model)
        self.passes = self._before = Passes()
        self._selected = "model"
        self._calls = [0] * len(self.dropouts)
        self._buffers = [name for name, _ in model.named_buffers() if name in self.params]
        self._leaves: Params = {}

    def select(self, name: str) -> None:
        if name != self._selected:
            if name not in self.sets:
                raise no_such_set(name, self.sets)
            self.sets[self._selected], self.params = self.params, self.sets.pop(name)
            self._selected = name

    def leaves(self, names: Collection[str], active: int) -> Params:
        # The leaves share their memory with the stack, so steps on them are steps on it.
        trained = {name: value for name, value in self.params.items() if name in names}
        for name, key in trained_entries(self._ruled[0], self.sets, names, self.params):
            trained[f"{name}/{key}"] = self.sets[name][key]
        self._leaves = {name: value[:active].detach().requires_grad_() for name, value in trained.items()}
        return self._leaves

    def value_of(self, name: str, active: int) -> Params:
        if name != self._selected and name not in self.sets:
            raise no_such_set(name, self.sets)
        values = self.params if name == self._selected else self.sets[name]
        return {key: value[:active] for key, value in values.items()}

    def part(self, value: Tensor, start: int, stop: int) -> Tensor:
        return value if start == 0 and stop == len(value) else value[start:stop]

    def backward(self, batch: Batch, position: Position) -> Tensor:
        ruled, members = self._ruled[0], self._members(batch, position)
        self.passes = Passes(1, 1)
        loss_of = self._losses
        if ruled.has_loss or ruled.has_gradient:
            self._before = Passes()
            loss_of = partial(self._over_members, lambda step, _: checked.loss_of(ruled.rule, step), position)
        self._calls = [0] * len(self.dropouts)
        losses = self._by_size(members, batch, loss_of)
        checked.backward(ruled, losses.sum())
        if ruled.has_gradient:
            found = {name: leaf.grad for name, leaf in self._leaves.items() if leaf.grad is not None}
            self._before = self.passes
            # As alone, masks of the gradient's hook are those that come after the loss's.
            self._calls = [module.calls for module in self.dropouts.values()]
            with torch.no_grad():
                hook = partial(checked.gradient_of, ruled.rule, trained=self._leaves)
                over = partial(self._over_members, hook, position)
                changed = self._by_size(replace(members, gradients=found), batch, over)
            for name, gradient in changed.items():
                self._leaves[name].grad = gradient
        return losses.detach()

    def _members(self, batch: Batch, position: Position) -> "_Members":
        active = len(batch.counts)
        of_model = {name: leaf for name, leaf in self._leaves.items() if name in self.params}
        sets = {name: {key: value[:active] for key, value in entries.items()} for name, entries in self.sets.items()}
        for name, leaf in self._leaves.items():
            if name not in self.params:
                of, _, key = name.partition("/")
                sets[of][key] = leaf
        drawn = []
        for member, ruled in enumerate(self._ruled[:active]):
            drawn.append(ruled.rule.draw(ruled.rng, {n: member_of(entries, member) for n, entries in sets.items()}))
        numbers = {}
        if batch.streams is not None:
            paths = zip(self.dropouts, batch.streams.unbind(1), strict=True)
            numbers = {f"{path}.stream": stream for path, stream in paths}
        return _Members(
            params={name: value[:active] for name, value in self.params.items()} | of_model,
            sets=sets,
            drawn=stack(drawn, batch.targets.device),
            numbers=numbers,
            inputs=batch.inputs,
            targets=batch.targets,
            real=batch.real,
            lr=self._step_sizes(position, active),
            class_weights=None if self._class_weights is None else self._class_weights[:active],
        )

    def _step_sizes(self, position: Position, active: int) -> Tensor | None:
        """Return the step size of each member for its rule, or None where all have the same."""
        if not (self._ruled[0].has_loss or self._ruled[0].has_gradient):
            return None
        lrs = [position.lr_of(member) for member in range(active)]
        leaf = next(iter(self._leaves.values()))
        return None if len(set(lrs)) == 1 else torch.tensor(lrs, dtype=leaf.dtype, device=leaf.device)

    def _losses(self, members: "_Members") -> Tensor:
        """Return each member's loss."""
        self._begin_masks()
        logits = self._forward(members.params | members.numbers, members.inputs)
        return self._loss.of_members(logits, members.targets, members.real, members.class_weights)

    def _over_members(self, hook: Callable[[Step, Params], Any], position: Position, members: "_Members") -> Any:
        """Apply a hook of the rule to each member's step and gradients."""
        self._begin_masks()
        # Parts of the cohort take the same passes in parallel; those of the gradient come on top of those of the loss.
        passes = replace(self._before)

        def of_one(member: _Members) -> Any:
            step = Step(
                params=member.params,
                sets=member.sets,
                drawn=member.drawn,
                inputs=member.inputs,
                targets=member.targets,
                real=member.real,
                number=position.number,
                phase=position.phase,
                lr=position.lr_of(0) if member.lr is None else member.lr,
                training_loss=self._loss.weighted(member.class_weights),
                network=Network(self._model, passes, member.numbers, self._precision),
            )
            return hook(step, member.gradients)

        result = over_members(lambda given: of_one(_Members(**given)))(members.given())
        self.passes = passes
        return result

    def _begin_masks(self) -> None:
        """Let each part of the cohort begin with the same masks."""
        for module, calls in zip(self.dropouts.values(), self._calls, strict=True):
            module.calls = calls

    def _rows_mix(self) -> bool:
        """Whether an example's output or loss, or their gradients, may depend on the other examples of its batch."""
        ruled = self._ruled[0]
        if not ruled.takes_padding and (ruled.has_loss or ruled.has_gradient):
            return True
        return any(
            (isinstance(module, StatisticsNorm) and module.training) or getattr(module, "scale_grad_by_freq", False)
            for module in self._model.modules()
        )

    def _by_size(self, members: "_Members", batch: Batch, function: Callable[["_Members"], Any]) -> Any:
        """Apply a function to all members, or, where padding matters, to those with equally many examples at a time."""
        if members.real is None or not self._rows_mix():
            return function(members)
        results, places = [], []
        for size in np.unique(batch.counts):
            chosen = torch.from_numpy(np.flatnonzero(batch.counts == size)).to(batch.targets.device)
            part = members.of(chosen, int(size), has_ignored=batch.has_ignored)
            results.append(function(part))
            places.append(chosen)
            with torch.no_grad():
                # Statistics that the forward pass has changed, of the model or of a set.
                for whole, own in [(members.params, part.params)] + [
                    (members.sets[k], part.sets[k]) for k in members.sets
                ]:
                    for name in self._buffers:
                        if name in whole:
                            whole[name].index_copy_(0, chosen, own[name])
        return _joined(results, torch.cat(places).argsort())


@dataclass(frozen=True)
class _Members:
    """Data for a step of several members; each tensor has a first dimension of members."""

    params: Params
    sets: dict[str, Params]
    drawn: Params
    numbers: Params
    inputs: Tensor
    targets: Tensor
    real: Tensor | None = None
    lr: Tensor | None = None
    class_weights: Tensor | None = None
    gradients: Params = field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Return the values that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, chosen: Tensor, size: int, *, has_ignored: bool) -> "_Members":
        """Return some of the members, with ``size`` rows each, of which all targets count unless some are ignored."""
        others = {name: value for name, value in self.given().items() if name not in ("inputs", "targets", "real")}
        return _Members(
            inputs=self.inputs[chosen, :size],
            targets=self.targets[chosen, :size],
            real=self.real[chosen, :size] if has_ignored and self.real is not None else None,
            **_picked(others, chosen),
        )


def _picked(values: Any, chosen: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values.index_select(0, chosen)
    return {name: _picked(value, chosen) for name, value in values.items()}


def _joined(parts: Sequence[Any], order: Tensor) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))[order]
    return {name: _joined([part[name] for part in parts], order) for name in parts[0]}
