"""Cost and losses of training, for each of several members."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.training.plan import Passes, Training


class Account:
    """Sums of each member's passes, and of its losses at the end, so that no step waits for the device.

    Parameters
    ----------
    members
        Number of members.
    """

    def __init__(self, members: int) -> None:
        self._members = members
        self._steps: list[tuple[np.ndarray, float, float]] = []
        self._of_model = False
        self.begin(np.zeros(members, dtype=np.int64), of_model=False)

    def begin(self, counted_from: np.ndarray, *, of_model: bool = True) -> None:
        """Begin a phase, in which losses count from each member's step ``counted_from``.

        Parameters
        ----------
        of_model
            Whether it trains the model. After such a phase, losses of one that trains a set do not count.
        """
        self._counts_losses = of_model or not self._of_model
        if not self._counts_losses:
            return
        self._of_model = of_model
        self._from = counted_from
        self._all_from = int(counted_from.max(initial=0))
        self._losses: list[Tensor] = []
        self._counts: list[np.ndarray] = []  # examples of each active member, or 0 where its loss does not count
        self._weights: list[Tensor | None] = []

    def add(self, step: int, losses: Tensor, counts: np.ndarray, passes: Passes, weights: Tensor | None = None) -> None:
        """Add a step of the active members, with their losses, numbers of examples and passes of the mini-batch.

        Parameters
        ----------
        weights
            Weights of the losses, shape [active], where they are not the numbers of examples.
        """
        self._steps.append((counts, passes.forward, passes.backward))
        if not self._counts_losses:
            return
        if step < self._all_from:
            counts = np.where(self._from[: len(counts)] <= step, counts, 0)
        if step >= self._all_from or counts.any():
            self._losses.append(losses.reshape(-1))
            self._counts.append(counts)
            self._weights.append(weights)

    def training(self, member: int, optimizer_state: Params, sets: dict[str, Params]) -> Training:
        """Return a member's report, with its optimiser's state and its sets after training."""
        seen, forward, backward = self._passed[:, member].tolist()
        return Training(self._means[member], int(seen), optimizer_state, Passes(forward, backward), sets)

    @cached_property
    def _passed(self) -> np.ndarray:
        """Examples of each member in mini-batches, forward passes and backward passes, shape [3, members]."""
        passed = np.zeros((3, self._members))
        for counts, forward, backward in self._steps:
            passed[:, : len(counts)] += np.array([[1.0], [forward], [backward]]) * counts
        return passed

    @cached_property
    def _means(self) -> list[float]:
        if not self._losses:
            return [float("nan")] * self._members
        losses = torch.cat(self._losses).double().cpu().numpy()
        members, counts = (np.concatenate(each) for each in ([np.arange(len(c)) for c in self._counts], self._counts))
        weights = np.concatenate(
            [
                each if more is None else more.cpu().numpy()
                for each, more in zip(self._counts, self._weights, strict=True)
            ]
        )
        members, weights, losses = members[counts > 0], weights[counts > 0], losses[counts > 0]
        return (np.bincount(members, losses * weights) / np.bincount(members, weights).clip(min=1)).tolist()
