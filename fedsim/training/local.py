"""Local training of one model: a pure function of the model, the data and a random stream."""

from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.sgd import sgd

from fedsim.models.layers import Layers
from fedsim.models.params import Params, first_keys, flat_copy, load_state_
from fedsim.training.account import Account
from fedsim.training.augmentation import Augmentation
from fedsim.training.batches import Batch, Batches, Member
from fedsim.training.dropout import seeded_modules, set_streams_
from fedsim.training.plan import LocalPlan, Passes, Phase, Training
from fedsim.training.rule import Network, Position, Ruled, Sets, Step
from fedsim.training.sgd import SGD


def train_(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: LocalPlan,
    settings: SGD,
    rng: np.random.Generator,
    momentum: Params | None = None,
    augmentation: Augmentation | None = None,
    ruled: Ruled | None = None,
) -> Training:
    """Train ``model`` in place by mini-batch SGD on cross-entropy, or what the client's rule descends instead.

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
    ruled
        The client's rule with its sets, which are copied.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be read or holds no parameter, or it names a set that the rule does not have.
    """
    ruled = ruled or Ruled()
    learner = _Single(model, ruled)
    batches = Batches([Member(inputs, targets, rng)], model, settings.batch_size, augmentation, len(learner.dropouts))
    kept = {name: value.to(targets.device, copy=True) for name, value in (momentum or {}).items()}
    account = follow_plan(model, learner, batches, plan, settings, kept)
    return account.training(0, kept, learner.sets_after())


class Learner(Protocol):
    """What is trained: one model, or the stacked parameters of several members.

    Attributes
    ----------
    passes
        Of the mini-batch in the last step.
    """

    passes: Passes

    def select(self, name: str) -> None:
        """Train from now on the ``model``, or the set of that name, which holds all entries of one."""

    def leaves(self, names: Collection[str], active: int) -> Params:
        """Return the parameters of these names, and those of trained sets, of the first ``active`` members.

        They are leaves that take gradients.
        """

    def value_of(self, name: str, active: int) -> Params:
        """Return the entries of the model or of a set as they are, of the first ``active`` members."""

    def first(self, value: Tensor, active: int) -> Tensor:
        """Return what belongs to the first ``active`` members of a tensor that is shaped like a parameter."""

    def backward(self, batch: Batch, position: Position) -> Tensor:
        """Put gradients of each member's mean loss into the leaves; return these losses, detached."""


def trained_entries(ruled: Ruled, sets: Sets, names: Collection[str], model: Collection[str]) -> list[tuple[str, str]]:
    """Return the entries of trained sets that a phase trains: of those that the model has too, the trainable ones."""
    return [
        (name, key)
        for name in ruled.rule.trained
        for key, value in sets[name].items()
        if value.is_floating_point() and (key in names or key not in model)
    ]


def no_such_set(name: str, sets: Sets) -> ValueError:
    """Return the error of a phase that names a set which the client does not have."""
    return ValueError(f"a phase names the set {name!r}, and the client has: {', '.join(['model', *sets])}")


class _Single:
    """A model's own parameters."""

    def __init__(self, model: nn.Module, ruled: Ruled) -> None:
        self._model = model
        self._ruled = ruled
        self._parameters = dict(model.named_parameters())
        first = first_keys(model)
        self._entries = {k: value for k, value in model.state_dict(keep_vars=True).items() if first[k] == k}
        self._sets = {name: dict(entries) for name, entries in ruled.sets.items()}
        for name in ruled.rule.trained:
            self._sets[name] = {key: value.detach().clone() for key, value in ruled.sets[name].items()}
        self._selected = "model"
        self._is_plain = not (ruled.has_loss or ruled.has_gradient)
        self.passes = Passes(1, 1)
        self.dropouts = list(seeded_modules(model).values())

    def select(self, name: str) -> None:
        if name == self._selected:
            return
        if name not in self._sets:
            raise no_such_set(name, self._ruled.sets)
        self._sets[self._selected] = flat_copy(self._entries)
        load_state_(self._model, self._sets.pop(name))
        self._selected = name

    def sets_after(self) -> dict[str, Params]:
        """Return the sets as training has left them; the model is in its place again."""
        self.select("model")
        return {name: {key: value.detach() for key, value in entries.items()} for name, entries in self._sets.items()}

    def leaves(self, names: Collection[str], active: int) -> Params:
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in names)
        for name in self._ruled.rule.trained:
            for value in self._sets[name].values():
                value.requires_grad_(False)
        leaves: Params = {name: parameter for name, parameter in self._parameters.items() if name in names}
        for name, key in trained_entries(self._ruled, self._sets, names, self._entries):
            leaves[f"{name}/{key}"] = self._sets[name][key].requires_grad_()
        return leaves

    def value_of(self, name: str, active: int) -> Params:
        if name == self._selected:
            return self._entries
        if name not in self._sets:
            raise no_such_set(name, self._ruled.sets)
        return self._sets[name]

    def first(self, value: Tensor, active: int) -> Tensor:
        return value

    def backward(self, batch: Batch, position: Position) -> Tensor:
        if batch.streams is not None:
            set_streams_(self.dropouts, batch.streams[0])
        if self._is_plain:
            loss = cross_entropy(self._model(batch.inputs), batch.targets)
            loss.backward()
            return loss.detach()
        step = self._step(batch, position)
        loss = self._ruled.rule.loss(step)
        loss.backward()
        if self._ruled.has_gradient:
            self._change_gradients(step)
        return loss.detach()

    def _step(self, batch: Batch, position: Position) -> Step:
        self.passes = Passes()
        return Step(
            params=self._entries,
            sets=self._sets,
            drawn=self._ruled.rule.draw(self._ruled.rng, self._sets),
            inputs=batch.inputs,
            targets=batch.targets,
            real=None,
            number=position.number,
            phase=position.phase,
            lr=position.lr,
            network=Network(self._model, self.passes),
        )

    def _change_gradients(self, step: Step) -> None:
        every = self._parameters | {
            f"{s}/{k}": value for s in self._ruled.rule.trained for k, value in self._sets[s].items()
        }
        leaves = {name: leaf for name, leaf in every.items() if leaf.requires_grad}
        with torch.no_grad():
            found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
            for name, gradient in self._ruled.rule.gradient(step, found).items():
                leaves[name].grad = gradient


def follow_plan(
    model: nn.Module, learner: Learner, batches: Batches, plan: LocalPlan, settings: SGD, momentum: Params
) -> Account:
    """Train all members through the plan's phases; return what they have passed through.

    Parameters
    ----------
    model
        Has the layers that phases name, and the mode that they train in; in the end it is in evaluation mode.
    momentum
        Buffers by parameter name, changed in place.

    Raises
    ------
    ValueError
        If a phase's layer group cannot be read or holds no parameter, or it names a set that there is not.
    """
    layers = Layers.of(model)
    account = Account(len(batches))
    for phase in plan.phases:
        group = layers.group(phase.trainable)
        if not (trainable := set(layers.keys(group, buffers=False))):
            raise ValueError(f"a phase trains {phase.trainable!r}, which holds no parameter")
        model.train()
        for name, module in model.named_modules():
            if isinstance(module, _NormBase) and name not in group:
                module.eval()  # a frozen layer's running statistics stay as they are
        learner.select(phase.trains)
        _run_phase(learner, batches, phase, settings, trainable, momentum, account)
    learner.select("model")
    model.eval()
    return account


def _run_phase(
    learner: Learner,
    batches: Batches,
    phase: Phase,
    settings: SGD,
    trainable: Collection[str],
    momentum: Params,
    account: Account,
) -> None:
    """Run one phase; update ``momentum`` and ``account`` in place."""
    if phase.steps is None:
        steps = (settings.epochs if phase.epochs is None else phase.epochs) * batches.lengths
        counted_from = steps - batches.lengths  # the last epoch
    else:
        steps, counted_from = np.full(len(batches), phase.steps), np.zeros(len(batches), dtype=np.int64)
    account.begin(counted_from)
    settings = settings if phase.lr is None else replace(settings, lr=phase.lr)
    of = "" if phase.trains == "model" else f"{phase.trains}/"  # each model has a momentum of its own
    active = 0
    start: Params = {}
    for step in range(steps.max()):
        if active == 0 or steps[active - 1] == step:
            # Members with fewer batches come last, so those that go on are always the first ones.
            active = int((steps > step).sum())
            leaves = learner.leaves(trainable, active)
            if step == 0:
                start = _origin(learner, phase, leaves, trainable, active)
                if settings.momentum:
                    missing = {
                        of + name: torch.zeros_like(leaf) for name, leaf in leaves.items() if of + name not in momentum
                    }
                    momentum.update(missing)
            velocity = {name: learner.first(momentum[of + name], active) for name in leaves if of + name in momentum}
            origin = {name: learner.first(value, active) for name, value in start.items()}
        batch = batches.take(step, active)
        for leaf in leaves.values():
            leaf.grad = None
        account.add(step, learner.backward(batch, Position(phase, step, settings.lr)), batch.counts, learner.passes)
        with torch.no_grad():
            for name, value in origin.items():
                if (gradient := leaves[name].grad) is not None:
                    gradient.add_(leaves[name] - value, alpha=phase.proximal)
            _descend_(leaves, velocity, settings)


def _origin(learner: Learner, phase: Phase, leaves: Params, trainable: Collection[str], active: int) -> Params:
    """Return what the phase's proximal term pulls towards; nothing if it has none."""
    if not phase.proximal:
        return {}
    values = leaves if phase.toward == "start" else learner.value_of(phase.toward, active)
    return {name: values[name].detach().clone() for name in leaves if name in trainable}


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
