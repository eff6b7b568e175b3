"""Mini-batches of one client, or of several that train together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.models.norms import StatisticsNorm
from fedsim.training.augmentation import Augmentation
from fedsim.training.dropout import streams
from fedsim.training.targets import IGNORED, real_targets


@dataclass(frozen=True)
class Member:
    """One client's training examples, and the stream for their order and everything else that is random."""

    inputs: Tensor
    targets: Tensor
    rng: np.random.Generator


@dataclass(frozen=True)
class Batch:
    """The mini-batch of each member that is still active.

    Parameters
    ----------
    inputs, targets
        Examples of a single member, shape [n, ...]; of several members, [active, n, ...], where n is that of the
        largest. The additional rows of a smaller one repeat its own and do not count.
    counts
        Number of examples of each active member.
    real
        Targets that count, with the shape of the targets; None if all do.
    streams
        Numbers of the dropout modules' streams, [active, modules].
    has_ignored
        Whether any member has targets that are ignored.
    """

    inputs: Tensor
    targets: Tensor
    counts: np.ndarray
    real: Tensor | None
    streams: Tensor | None
    has_ignored: bool = False

    @property
    def weights(self) -> Tensor | None:
        """Number of targets that count of each active member, [active]; None if they are as its examples."""
        if not self.has_ignored or self.real is None:
            return None
        return self.real.reshape(len(self.counts), -1).sum(1)


def cut_batches(model: nn.Module, n: int, size: int) -> list[slice]:
    """Cut n examples into batches; none is dropped.

    Batch normalisation has no statistics over a single example, so with it a last batch of one is added to the one
    before.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1 and any(isinstance(m, StatisticsNorm) for m in model.modules()):
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], n], strict=True)]


class Batches:
    """Mini-batches of members that train together, each in its own order, drawn again for each epoch.

    Parameters
    ----------
    members
        Members by their number of batches, the largest first, on one device.
    model, size
        Model that is trained, and number of examples in a batch.
    modules
        Number of dropout modules that need a stream for each step.
    stacked
        Whether batches have a first dimension of members; without it there is one member.
    """

    def __init__(
        self,
        members: Sequence[Member],
        model: nn.Module,
        size: int,
        augmentation: Augmentation | None,
        modules: int,
        *,
        stacked: bool = True,
    ) -> None:
        self._stacked = stacked
        self._rngs = [member.rng for member in members]
        self._augmentation = augmentation
        self._modules = modules
        self._inputs, self._targets = (
            (values[0] if len(values) == 1 else torch.cat(values))
            for values in ([member.inputs for member in members], [member.targets for member in members])
        )
        self._has_ignored = real_targets(self._targets) is not None
        sizes = [len(member.targets) for member in members]
        cuts = [cut_batches(model, n, size) for n in sizes]
        self.lengths = np.array([len(each) for each in cuts])  # batches in an epoch of each member
        self._bounds = np.cumsum([0, *sizes])
        self._cuts = cuts
        self._starts = np.concatenate([[cut.start for cut in each] for each in cuts])
        self._counts = np.concatenate([[cut.stop - cut.start for cut in each] for each in cuts])
        self._first = np.cumsum([0, *self.lengths[:-1]])
        self._numbers = np.zeros(len(members), dtype=np.int64)  # of the members' epochs, for the dropout's streams

    def __len__(self) -> int:
        return len(self._rngs)

    def take(self, step: int, active: int) -> Batch:
        """Return the batch of a phase's ``step``, from 0, of the first ``active`` members."""
        if not self._stacked:
            return self._take_of_one(step)
        position = step % self.lengths[:active]
        beginning = np.flatnonzero(position == 0)
        if len(beginning):
            self._begin_epoch(beginning)
        counts = self._counts[self._first[:active] + position]
        numbers = None
        if self._modules:
            numbers = self._to_device(streams(self._numbers[:active], position, self._modules))
        starts = self._bounds[:active] + self._starts[self._first[:active] + position]
        start, count = self._to_device(np.stack([starts, counts]))[:, :, None]
        row = torch.arange(int(counts.max()), device=count.device)
        rows = start + torch.minimum(row, count - 1)
        targets = self._epoch_targets[rows]
        real = None if counts.min() == counts.max() else _like(row < count, targets)
        if self._has_ignored:
            real = targets != IGNORED if real is None else real & (targets != IGNORED)
        return Batch(self._epoch_inputs[rows], targets, counts, real, numbers, self._has_ignored)

    def _take_of_one(self, step: int) -> Batch:
        """Return the batch of a single member, as slices of its epoch."""
        position = step % len(self._cuts[0])
        if position == 0:
            self._begin_epoch(np.zeros(1, dtype=np.int64))
        numbers = None
        if self._modules:
            numbers = self._to_device(streams(self._numbers, np.array([position]), self._modules))
        cut = self._cuts[0][position]
        targets = self._epoch_targets[cut]
        real = targets != IGNORED if self._has_ignored else None
        counts = self._counts[position : position + 1]
        return Batch(self._epoch_inputs[cut], targets, counts, real, numbers, self._has_ignored)

    def _begin_epoch(self, members: np.ndarray) -> None:
        """Draw the order of these members' examples and the other random numbers of an epoch, and apply them."""
        orders, draws = [], []
        for member in members:
            stream, low, high = self._rngs[member], self._bounds[member], self._bounds[member + 1]
            orders.append(low + stream.permutation(high - low))
            if self._augmentation:
                draws.append(self._augmentation.draw(high - low, stream))
            if self._modules:
                self._numbers[member] = stream.integers(2**63 - 1)
        order = self._to_device(np.concatenate(orders))
        inputs, targets = rows_of(self._inputs, order), rows_of(self._targets, order)
        if self._augmentation:
            mirrored, window = (np.concatenate(values, -1) for values in zip(*draws, strict=True))
            inputs = self._augmentation.move(inputs, mirrored, window)
        if len(members) == len(self):
            self._epoch_inputs, self._epoch_targets = inputs, targets
        else:
            held = [np.arange(self._bounds[member], self._bounds[member + 1]) for member in members]
            places = self._to_device(np.concatenate(held))
            self._epoch_inputs[places], self._epoch_targets[places] = inputs, targets

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._targets.device, non_blocking=True)


def rows_of(values: Tensor, order: Tensor) -> Tensor:
    """Return ``values[order]``, laid out in memory as there, in a third of the time where each example is one block."""
    is_dense = values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last)
    if not is_dense or not values.numel():
        return values[order]
    length = values.numel() // len(values)
    rows = values.as_strided((len(values), length), (length, 1)).index_select(0, order)
    return rows.as_strided((len(order), *values.shape[1:]), (length, *values.stride()[1:]))


def _like(rows: Tensor, targets: Tensor) -> Tensor:
    """Return a mask of rows, [active, n], as one of all their targets."""
    return rows.view(*rows.shape, *[1] * (targets.ndim - 2)).expand_as(targets)
