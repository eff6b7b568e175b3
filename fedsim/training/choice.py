"""How many clients train together: what a model allows, and what is faster on its device."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import ClientError, error_line
from fedsim.models.copies import copy_of
from fedsim.models.params import Params, load_state_, moves, state_of
from fedsim.training.augmentation import Augmentation
from fedsim.training.cohort import LocalTask, train_cohort
from fedsim.training.local import train_
from fedsim.training.losses import CROSS_ENTROPY, Loss
from fedsim.training.plan import LocalPlan, Phase
from fedsim.training.rule import Ruled
from fedsim.training.settings import LocalSettings

MEASURED_STEPS = 3


def cohort_problem(model: nn.Module, inputs: Tensor, targets: Tensor, objective: Loss = CROSS_ENTROPY) -> str | None:
    """Return why a model cannot be trained as a cohort, or None.

    It is tested by a step of two clients, with two and three examples, which must have the same effect as alone.

    Parameters
    ----------
    inputs, targets
        A few training examples, on the model's device; the model itself does not change.
    objective
        The loss of the run.

    Raises
    ------
    ClientError
        If its loss has no gradient, so that it cannot be trained alone either.
    """
    if objective.of_batch:
        return "the loss of an example depends on the others of its mini-batch"
    model = copy_of(model)
    plan, settings = LocalPlan((Phase(steps=1),)), LocalSettings(batch_size=3)
    params = {key: value.detach().clone() for key, value in state_of(model).items()}
    ends = torch.tensor([0, len(targets) - 1, 0], device=targets.device)
    clients = [(inputs[rows], targets[rows]) for rows in (ends[:2], ends)]
    try:
        ruled = Ruled(training_loss=objective)
        tasks = [LocalTask(params, *client, np.random.default_rng(0), ruled=ruled) for client in clients]
        together = [result for result, _ in train_cohort(model, tasks, plan, settings)]
        for client, result in zip(clients, together, strict=True):
            load_state_(model, params)
            train_(model, *client, plan, settings, np.random.default_rng(0), ruled=ruled)
            # No tighter, because statistics over two examples can amplify rounding.
            if _distance(result, state_of(model)) > 0.05 * _distance(params, state_of(model)):
                return "a step in a cohort has another effect than alone"
    except ClientError:
        raise
    except Exception as error:  # a model that does not expect the tensors of many clients may raise anything
        return error_line(error)
    return None


def _distance(one: Params, other: Params) -> float:
    pairs = [(value.double(), other[key].double()) for key, value in one.items() if moves(value)]
    # The difference of equal infinities, as in masks, is 0.
    return math.sqrt(sum(float(torch.where(a == b, 0, a - b).square().sum()) for a, b in pairs))


class Gauge(Protocol):
    """Measures the time and memory that work takes on a device."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the time that the work takes."""

    def used_bytes(self, work: Callable[[], object]) -> int:
        """Return the peak memory of the work."""

    def free_bytes(self) -> int:
        """Return the free memory."""


def choose_cohort(
    model: nn.Module,
    tasks: Sequence[LocalTask],
    plan: LocalPlan,
    settings: LocalSettings,
    augmentation: Augmentation | None = None,
    gauge: Gauge | None = None,
) -> int:
    """Return how many clients should train together: 1 unless steps of as many as fit are measured to be faster.

    On a CPU it is 1: one client's parameters stay in the cache and those of a cohort do not.

    Parameters
    ----------
    model
        Model to train; its weights are arbitrary afterwards.
    tasks
        Clients as in training; their random streams are not used.
    gauge
        Gauge to measure with (default: only a GPU is measured).
    """
    device = tasks[0].targets.device
    if gauge is None:
        if device.type != "cuda":
            return 1
        gauge = _CudaGauge(device)
    if len(tasks) < 2 or callable(settings.optimizer) or not _is_cohort(model, tasks[0]):
        return 1
    short = LocalPlan((replace(plan.phases[0], epochs=None, steps=MEASURED_STEPS),))
    tasks = sorted(tasks, key=lambda task: -len(task.targets))  # the largest need the most memory
    start = {key: value.to(device) for key, value in tasks[0].params.items()}
    plain = [Ruled(training_loss=task.ruled.training_loss) for task in tasks]
    trials = [
        LocalTask(start, task.inputs, task.targets, np.random.default_rng(0), ruled=own)
        for task, own in zip(tasks, plain, strict=True)
    ]

    def alone() -> None:
        load_state_(model, start)
        one = trials[0]
        train_(model, one.inputs, one.targets, short, settings, one.rng, augmentation=augmentation, ruled=one.ruled)

    def together(clients: int) -> Callable[[], object]:
        return lambda: train_cohort(model, trials[:clients], short, settings, augmentation)

    try:
        together(2)()  # so that one-time allocations of libraries do not count
        each = max(1, gauge.used_bytes(together(2)) // 2)
        clients = min(len(tasks), gauge.free_bytes() // 2 // each)
        if clients < 2:
            return 1
        for work in (alone, together(clients)):
            work()
        faster = gauge.seconds(together(clients)) < clients * gauge.seconds(alone)
    except torch.OutOfMemoryError:
        return 1
    return clients if faster else 1


def _is_cohort(model: nn.Module, task: LocalTask) -> bool:
    try:
        return cohort_problem(model, task.inputs, task.targets, task.ruled.training_loss) is None
    except ClientError:  # which a client reports as it trains
        return False


class _CudaGauge:
    """Measures a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, work: Callable[[], object]) -> float:
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def used_bytes(self, work: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before

    def free_bytes(self) -> int:
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + cached
