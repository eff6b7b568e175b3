"""A path of low loss between two models: one layer after the other moves, and what has not arrived is trained."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fedsim.alignment.repair.variance import spread_to
from fedsim.analysis.arguments import check_is_number
from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.paired import check_argument, check_paired
from fedsim.analysis.models import Models
from fedsim.models.asymmetry import fixed_entries, free_parts, with_free_part
from fedsim.models.copies import loaded
from fedsim.models.distance import norm
from fedsim.models.layer import Layer
from fedsim.models.layer_reading import owner_of
from fedsim.models.params import is_equal, moves, state_of
from fedsim.models.variance import variances
from fedsim.seeds import rng
from fedsim.training.evaluation import evaluate


@of_models
def layer_path(
    models: Models,
    data: Data,
    *,
    train: Data | None = None,
    order: Sequence[str] | None = None,
    step: float = 1e-3,
    share: float = 0.0,
    train_steps: int = 5,
    lr: float = 1e-3,
    batch_size: int = 64,
    keeps_variance: bool = True,
    max_ticks: int = 30_000,
    every: int = 100,
) -> pd.DataFrame:
    """Walk from one model to another, layer by layer, with training on the way.

    In each tick the current layer moves towards that of the second model, by ``max(step, share * distance)``, and all
    layers that have not arrived are trained. A layer that has arrived stays, and the next one begins to move.

    Parameters
    ----------
    models
        Two models: the start and the end of the path.
    data
        Examples for the losses along the path.
    train
        Examples for training; by default those of ``data``.
    order
        Layers in the order in which they move; by default that of the model.
    step, share
        Length of a step: the L2 norm of the layer's displacement, and as a share of the distance that is left.
        ``math.inf`` moves each layer at once.
    train_steps, lr, batch_size
        Steps of plain SGD in each tick. Models are trained in eval mode: statistics move with their layer only.
    keeps_variance
        Whether tensors that have not arrived are given back their variance after each move and each training, as in
        `fedsim.alignment.repair.variance`: the start's, or on the way, in proportion, a mix of both ends'.
    max_ticks
        Ticks after which the walk ends, whether or not all layers have arrived.
    every
        Ticks from one evaluation to the next; the start, each arrival and the last tick are evaluated too.

    Returns
    -------
    pandas.DataFrame
        One row per evaluation: ``tick, layer, arrived, distance, n, loss, error`` with the layer that moves, the
        number of layers that have arrived, and the L2 distance from the end, running statistics included. Integers,
        such as masks, become those of the end as their layer arrives; where only they differ, in the last of two rows.

    Raises
    ------
    ValueError
        If there are not two states, one does not fit the model, an argument is unknown or out of range, or a loss on
        the way is not finite, as where training diverges.
    TypeError
        If a setting is not a number, or ``train`` is not `Data`.

    References
    ----------
    Tian et al. 2026, layer-wise paths between independent models, arXiv 2505.02604. That layers stay where they have
    arrived is ours: the path then ends at the second model exactly.
    """
    if len(models.at_least(2)) != 2:
        raise ValueError(f"there are {len(models)} states; a path has two ends, give two")
    check_paired(data)
    names = _check_order(models.layers.names, order)
    if train is not None:
        check_argument("train", train)
    _check_numbers({"step": step, "share": share, "lr": lr})
    _check_counts({"train_steps": train_steps}, least=0)
    _check_counts({"batch_size": batch_size, "every": every, "max_ticks": max_ticks}, least=1)
    walk = _Walk(models, data if train is None else train, lr, batch_size, keeps_variance)
    rows = [walk.row(0, names[0], data)]
    if not math.isfinite(rows[0]["loss"]):
        raise ValueError("the start has no finite loss; give another model")
    tick = 0
    for name in names:
        while not walk.has_arrived(name) and tick < max_ticks:
            tick += 1
            walk.move_(name, step, share)
            walk.train_(train_steps)
            if tick % every == 0 or walk.has_arrived(name) or tick == max_ticks:
                rows.append(walk.row(tick, name, data))
                if not math.isfinite(rows[-1]["loss"]):
                    why = f": training diverged with lr = {lr:g}; lower it" if train_steps else ""
                    raise ValueError(f"after {tick:,} ticks the loss is not finite{why}")
    if not tick and walk.finish_():
        rows.append(walk.row(1, names[-1], data))
    return pd.DataFrame(rows)


class _Walk:
    """The model on its way, and where it goes."""

    def __init__(self, models: Models, train: Data, lr: float, batch_size: int, keeps_variance: bool) -> None:
        start, self._end = models.fitted
        self._layers = {layer.name: layer for layer in models.layers}
        self._net = loaded(models.model, start)
        self._entries = state_of(self._net, keep_vars=True)
        self._train, self._lr, self._batch = train, lr, batch_size
        self._order = rng(models.seed, "layer path")
        parameters = [key for layer in models.layers for key in layer.parameters]
        self._fixed = fixed_entries(models.model)
        ends = [free_parts(each, self._fixed) for each in (start, self._end)]
        self._variances = [variances(each, parameters) for each in ends] if keeps_variance else []
        self._whole = {name: self._left(layer) for name, layer in self._layers.items()}
        self._arrived = {name for name, left in self._whole.items() if left == 0}

    def has_arrived(self, name: str) -> bool:
        return name in self._arrived

    def row(self, tick: int, name: str, data: Data) -> dict[str, Any]:
        found = evaluate(self._net, data.inputs, data.targets, data.criterion)
        distance = math.hypot(*(self._left(layer) for layer in self._layers.values()))
        about = {"tick": tick, "layer": name, "arrived": len(self._arrived), "distance": distance}
        return about | {"n": found.n, "loss": found.loss, "error": found.error}

    def move_(self, name: str, step: float, share: float) -> None:
        """Move a layer, with its statistics, by a step or to its end."""
        layer = self._layers[name]
        left = self._left(layer)
        length = max(step, share * left)
        if length >= left:
            self._arrived.add(name)
        with torch.no_grad():
            for key in layer.keys:
                entry, end = self._entries[key], self._end[key]
                entry.copy_(end if length >= left else torch.lerp(entry, end.to(entry), length / left))
        # Integers, such as a mask, cannot be mixed: they change with their layer's arrival, others with the last.
        if self._arrived == self._layers.keys():
            self.finish_()
        elif name in self._arrived:
            self._take_codes_({key for key in self._entries if owner_of(key) == name})
        self._spread_()

    def finish_(self) -> bool:
        """Give the model all integers of the end, such as masks; return whether some differed."""
        return self._take_codes_(self._entries)

    def _take_codes_(self, keys: Collection[str]) -> bool:
        codes = [key for key in keys if not (moves(self._end[key]) or is_equal(self._entries[key], self._end[key]))]
        with torch.no_grad():
            for key in codes:
                self._entries[key].copy_(self._end[key])
        return bool(codes)

    def train_(self, steps: int) -> None:
        """Train what has not arrived."""
        keys = [key for key in self._moving() if self._entries[key].requires_grad]
        if not keys or not steps:
            return
        optimizer = torch.optim.SGD([self._entries[key] for key in keys], lr=self._lr)
        with self._differentiable():
            for inputs, targets in islice(self._batches(), steps):
                optimizer.zero_grad()
                self._train.criterion(self._net(inputs), targets).mean().backward()
                optimizer.step()
        self._net.zero_grad()
        self._spread_()

    def _differentiable(self) -> AbstractContextManager[None]:
        """Leave out cuDNN for recurrent layers, of which it has no gradients in eval mode."""
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in self._net.modules())
        return torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            chosen = self._order.choice(len(self._train), size=min(self._batch, len(self._train)), replace=False)
            places = torch.from_numpy(chosen).to(self._train.inputs.device)
            yield self._train.inputs[places], self._train.targets[places]

    def _moving(self) -> list[str]:
        return [key for name, layer in self._layers.items() if name not in self._arrived for key in layer.parameters]

    def _spread_(self) -> None:
        """Give tensors that have not arrived their variance back."""
        for name, layer in self._layers.items() if self._variances else ():
            if name in self._arrived:
                continue
            progress = min(1.0, max(0.0, 1 - self._left(layer) / self._whole[name]))
            start, end = self._variances
            for key in layer.parameters:
                if key in start:
                    goal = (1 - progress) * start[key] + progress * end[key]
                    value = self._entries[key].detach()
                    spread = spread_to(free_parts({key: value}, self._fixed)[key], goal)
                    with torch.no_grad():
                        self._entries[key].copy_(with_free_part(value, spread, self._fixed.get(key)))

    def _left(self, layer: Layer) -> float:
        return norm(self._end[key].double() - self._entries[key].detach().double() for key in layer.keys)


def _check_order(names: Sequence[str], order: Sequence[str] | None) -> Sequence[str]:
    if order is None:
        return names
    if sorted(order) != sorted(names):
        raise ValueError(f"order = {list(order)} must hold each layer once: {', '.join(names)}")
    return list(order)


def _check_counts(counts: Mapping[str, int], least: int) -> None:
    for name, value in counts.items():
        check_is_number(name, value)
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} = {value} must be a whole number of at least {least}")


def _check_numbers(numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        check_is_number(name, value)
        if not value >= 0:
            raise ValueError(f"{name} = {value} must be at least 0")
    if not numbers["step"] and not numbers["share"]:
        raise ValueError("step = 0 and share = 0 never move; give one of them a positive number")
