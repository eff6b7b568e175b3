"""Local training of one model: a pure function of the model, the data and a random stream."""

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.models.params import Params, dense, flat_copy, load_state_, state_of
from fedsim.training import checked
from fedsim.training.augmentation import Augmentation
from fedsim.training.batches import Batch, Batches, Member
from fedsim.training.context import Network, Step
from fedsim.training.descent import follow_plan
from fedsim.training.dropout import seeded_modules, set_streams_
from fedsim.training.learner import no_such_set, trained_entries
from fedsim.training.plan import LocalPlan, Passes, Training
from fedsim.training.precision import in_precision
from fedsim.training.rule import Position, Ruled
from fedsim.training.schedule import RoundOf
from fedsim.training.settings import LocalSettings


def train_(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: LocalPlan,
    settings: LocalSettings,
    rng: np.random.Generator,
    optimizer_state: Params | None = None,
    augmentation: Augmentation | None = None,
    ruled: Ruled | None = None,
    at: RoundOf | None = None,
) -> Training:
    """Train ``model`` in place in mini-batches on the run's loss, by default cross-entropy, or the client's rule's own.

    Parameters
    ----------
    inputs, targets
        Normalised inputs, shape [n, ...], and targets, such as class indices, shape [n] or [n, length], on the model's
        device. n is at least 1. Targets of -100 do not count: the loss of a batch is the mean over all of its other
        targets.
    plan
        Phases of training; layers that a phase does not train do not change, including their running statistics.
    rng
        Stream for the order of the examples and the numbers of their augmentation, in each epoch.
    optimizer_state
        State of the optimiser to start from, as `Training` has it (default: none).
    augmentation
        Augmentation of images (default: none).
    ruled
        The client's rule with its sets, which are copied, and the run's loss.
    at
        Round of the run that the schedule spans (default: this training is the whole run).

    Raises
    ------
    ValueError
        If a phase's layer group cannot be parsed or holds no parameter, it names a set that the rule does not have, or
        an ``lr_scale`` cannot be read or names no parameter.
    """
    ruled = ruled or Ruled()
    learner = _Single(model, ruled, settings)
    members, modules = [Member(inputs, targets, rng)], len(learner.dropouts)
    batches = Batches(members, model, settings.batch_size, augmentation, modules, stacked=False)
    kept = {name: value.to(targets.device, copy=True) for name, value in (optimizer_state or {}).items()}
    try:
        account = follow_plan(model, learner, batches, plan, settings, kept, at)
    finally:
        learner.unfreeze()
    return account.training(0, kept, learner.sets_after())


class _Single:
    """A model's own parameters."""

    stacked: tuple[int, ...] = ()

    def __init__(self, model: nn.Module, ruled: Ruled, settings: LocalSettings) -> None:
        self._model = model
        self._ruled = ruled
        self._precision = settings.precision
        self._forward = in_precision(model, settings.precision)
        self._loss = ruled.training_loss.smoothed(settings.label_smoothing)
        self._entries = state_of(model, keep_vars=True)
        self._parameters = {key: value for key, value in model.named_parameters() if key in self._entries}
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

    def unfreeze(self) -> None:
        """Let all parameters require a gradient again that did before."""
        for parameter in self._parameters.values():
            parameter.requires_grad_()

    def sets_after(self) -> dict[str, Params]:
        """Return the sets after training; the model is selected again."""
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

    def part(self, value: Tensor, start: int, stop: int) -> Tensor:
        return value

    def backward(self, batch: Batch, position: Position) -> Tensor:
        if batch.streams is not None:
            set_streams_(self.dropouts, batch.streams[0])
        if self._is_plain:
            loss = self._loss.mean(self._forward(batch.inputs), batch.targets, batch.real)
            checked.backward(self._ruled, loss)
            return loss.detach()
        step = self._step(batch, position)
        loss = checked.loss_of(self._ruled.rule, step)
        checked.backward(self._ruled, loss)
        if self._ruled.has_gradient:
            self._change_gradients(step)
        return loss.detach()

    def _step(self, batch: Batch, position: Position) -> Step:
        self.passes = Passes()
        drawn = self._ruled.rule.draw(self._ruled.rng, self._sets)
        return Step(
            params=self._entries,
            sets=self._sets,
            drawn={name: value.to(batch.targets.device) for name, value in drawn.items()},
            inputs=batch.inputs,
            targets=batch.targets,
            real=batch.real,
            number=position.number,
            phase=position.phase,
            lr=position.lr_of(0),
            training_loss=self._loss,
            network=Network(self._model, self.passes, precision=self._precision),
        )

    def _change_gradients(self, step: Step) -> None:
        every = self._parameters | {
            f"{s}/{k}": value for s in self._ruled.rule.trained for k, value in self._sets[s].items()
        }
        leaves = {name: leaf for name, leaf in every.items() if leaf.requires_grad}
        with torch.no_grad():
            found = dense({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})
            for name, gradient in checked.gradient_of(self._ruled.rule, step, found, trained=leaves).items():
                leaves[name].grad = gradient
