"""The step size as a function of the round, the step in it, and a client's steps in a round."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.training.plan import LocalPlan, Phase
from fedsim.training.settings import LocalSettings


@dataclass(frozen=True)
class RoundOf:
    """A round of a run.

    Parameters
    ----------
    server_round
        Its number, from 1.
    rounds
        Number of rounds of the run.
    """

    server_round: int = 1
    rounds: int = 1


def steps_in(phase: Phase, settings: LocalSettings, batches: np.ndarray) -> np.ndarray:
    """Return how many steps clients take in a phase, given the number of mini-batches in an epoch of each."""
    if phase.steps is not None:
        return np.full(len(batches), phase.steps)
    return (settings.epochs if phase.epochs is None else phase.epochs) * batches


def steps_of(plan: LocalPlan, settings: LocalSettings, batches: np.ndarray) -> np.ndarray:
    """Return how many steps clients take in a round."""
    return sum((steps_in(phase, settings, batches) for phase in plan.phases), np.zeros_like(batches))


class Schedule:
    """The step sizes of clients in a round, each at its own position: that of its step among all that it would take.

    A position in the run is a function of the round, so it does not depend on the rounds in which a client took part.

    Parameters
    ----------
    batches
        Number of mini-batches in an epoch of each client.
    """

    def __init__(self, settings: LocalSettings, plan: LocalPlan, batches: np.ndarray, at: RoundOf) -> None:
        steps = steps_of(plan, settings, batches)
        over_run = settings.schedule_over == "run"
        self._settings, self._batches = settings, batches
        self._before = steps * (at.server_round - 1 if over_run else 0)
        self._totals = steps * (at.rounds if over_run else 1)
        self._is_constant = settings.schedule == "constant" and not settings.warmup
        self._lr = settings.lr
        self._steps = np.zeros_like(batches)

    def begin(self, phase: Phase) -> np.ndarray:
        """Begin the next phase; return the number of steps that each client takes in it."""
        self._before = self._before + self._steps
        self._steps = steps_in(phase, self._settings, self._batches)
        self._lr = self._settings.lr if phase.lr is None else phase.lr
        return self._steps

    @property
    def differ(self) -> np.ndarray:
        """A number for each client: equal ones have the same step size in each step."""
        return np.zeros_like(self._totals) if self._is_constant else self._totals

    def lr_of(self, step: int) -> Callable[[int], float]:
        """Return the step size by client in a step of the phase, from 0."""
        lr, before, totals = self._lr, self._before, self._totals
        if self._is_constant:
            return lambda client: lr
        return lambda client: lr * share_of_lr(self._settings, int(before[client]) + step, int(totals[client]))


def share_of_lr(settings: LocalSettings, position: int, total: int) -> float:
    """Return the share of the highest step size at a position, from 0, of that many steps.

    These are torch's schedules `LinearLR` (from ``1 / (warmup + 1)``), and after it `CosineAnnealingLR`, `LinearLR` or
    `StepLR`, one after the other as in `SequentialLR`.
    """
    if position < settings.warmup:
        return (position + 1) / (settings.warmup + 1)
    position, left = position - settings.warmup, max(total - settings.warmup, 1)
    if settings.schedule == "cosine":
        return settings.end_factor + (1 - settings.end_factor) * (1 + math.cos(math.pi * position / left)) / 2
    if settings.schedule == "linear":
        return 1 - (1 - settings.end_factor) * position / left
    if settings.schedule == "step":
        assert settings.step_size
        return settings.gamma ** (position // settings.step_size)
    return 1.0


def depends_on_rounds(settings: LocalSettings) -> bool:
    """Return whether step sizes depend on the number of rounds of the run."""
    return settings.schedule in ("cosine", "linear") and settings.schedule_over == "run"
