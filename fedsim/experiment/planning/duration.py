"""About how long runs take: by the rounds of earlier runs, else by a few timed steps."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.measuring.barrier_cost import PASSES_TO_TRAIN
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants
from fedsim.models.copies import copy_of
from fedsim.models.params import load_state_
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.seeds import rng
from fedsim.strategy import Phase
from fedsim.training import LocalPlan, Ruled, train_

# Settings on which the seconds of a round depend, besides the strategy.
ALIKE = (
    *("clients", "participation", "unseen", "device", "evaluate_every"),
    *("data", "model", "loss", "local", "evaluation", "barriers"),
)
TIMED_SECONDS, MOST_STEPS = 0.3, 64


class Earlier:
    """Seconds of a round in the runs of an experiment so far, by the settings on which they depend."""

    def __init__(self, folder: Path) -> None:
        self._seconds: dict[str, dict[str, list[float]]] = {}
        for config, seconds in _timed(folder):
            by_strategy = self._seconds.setdefault(_alike(config), {})
            by_strategy.setdefault(str(config.strategy), []).extend(seconds)

    def seconds_of_round(self, config: Config) -> tuple[float, int] | None:
        """Return the mean seconds of a round of like runs, and of how many; with other strategies if there are none."""
        by_strategy = self._seconds.get(_alike(config), {})
        seconds = by_strategy.get(str(config.strategy), [each for found in by_strategy.values() for each in found])
        return (float(np.mean(seconds)), len(seconds)) if seconds else None


def _timed(folder: Path) -> Iterator[tuple[Config, list[float]]]:
    for path in sorted([*folder.glob("*/timing.jsonl"), *folder.glob("tuning/*/timing.jsonl")]):
        try:
            config, rows = RunFolder(path.parent).read_config(), read_rows(path)
        except (ConfigError, OSError):
            continue  # whoever resumes or compares the run says so
        if len(rows):
            yield config, list(rows.drop(columns="round").sum(axis=1))


def _alike(config: Config) -> str:
    settings: Mapping[str, Any] = config.model_dump(mode="json")
    return str([settings[key] for key in ALIKE])


def timed_step(federation: Federation) -> float:
    """Return the seconds of a forward pass of one example, by a few training steps that leave no trace.

    The model is a copy that is thrown away, and nothing of the run's random streams is used.
    """
    config = federation.config
    sizes = {client: len(federation.data.split.train[client]) for client in participants(config, 1)}
    client = sorted(sizes, key=lambda each: (sizes[each], each))[len(sizes) // 2]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a run
    try:
        with torch.random.fork_rng(devices=[]):
            _seconds_of_steps(federation, client, 1)  # it also pays for what is done only once
            steps, seconds = 4, _seconds_of_steps(federation, client, 4)
            while seconds < TIMED_SECONDS and steps < MOST_STEPS:
                steps *= 4
                seconds = _seconds_of_steps(federation, client, steps)
    finally:
        torch.set_num_threads(threads)
    return seconds / (steps * min(config.local.batch_size, sizes[client]) * PASSES_TO_TRAIN)


def _seconds_of_steps(federation: Federation, client: int, steps: int) -> float:
    inputs, targets = federation.data.client(client).train
    settings = replace(federation.local, schedule="constant", warmup=0)
    plan, ruled = LocalPlan((Phase(steps=steps),)), Ruled(training_loss=federation.objective_of(targets))
    model = copy_of(federation.model())
    load_state_(model, federation.initial)
    began = time.perf_counter()
    train_(model, inputs, targets, plan, settings, rng(0, "timed step"), None, federation.data.augmentation, ruled)
    return time.perf_counter() - began
