"""Flower's own strategies as the rule by which the shared layers of any group are averaged."""

import copy
import gc
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, get_type_hints

import numpy as np
import torch
from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedsim.errors import RunError
from fedsim.models.params import Params
from fedsim.shortening import a_type
from fedsim.strategy import ClientUpdate, Strategy, messages
from fedsim.strategy.options import Option

# What a Flower strategy holds of the global model; those that do step from it.
CURRENT = "current_arrays"
# Parameters that choose clients or name records, or are the clients' step size, which is ``local.lr``.
NO_OPTIONS = inspect.signature(FedAvg).parameters.keys() | {"eta_l"}
Containers = dict[str, dict[str, np.ndarray] | list[np.ndarray]]


class FlowerRule(Strategy, shared="all"):
    """Average one layer group by a strategy of Flower.

    Parameters
    ----------
    rule
        One that turns the clients' arrays into new ones, such as Flower's FedTrimmedAvg; it is copied.

    Raises
    ------
    TypeError
        If the rule is not a Flower strategy that averages arrays.

    Notes
    -----
    The rule sees the updates sorted by client, and the entries that are shared, as arrays of their own dtype. One that
    steps from the global model, such as FedAdam, sees no running statistics, which are averaged: a step could make a
    variance negative.
    """

    def __init__(self, model: nn.Module, rule: FedAvg, **options: Any) -> None:
        super().__init__(model, **options)
        if not isinstance(rule, FedAvg):
            raise TypeError(f"{a_type(rule)} is no Flower strategy that averages arrays; give one, or its name")
        self.flower = copy.copy(rule)
        self.flower.fraction_train = 0.0  # to be told about a round, it needs no clients to choose from

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return what the rule makes of the updates.

        Raises
        ------
        RunError
            If it makes nothing of them, as some rules do of too few, or keeps arrays that no checkpoint would have.
        """
        steps = hasattr(self.flower, CURRENT)
        mean = super().aggregate(server_round, updates) if steps else {}
        keys = [key for key in updates[0].shared if not steps or key in self.parameters]
        if not keys:
            return mean
        replies = [_reply(server_round, update, keys, self.flower.weighted_by_key) for update in updates]
        before = messages.encode({key: self.global_model[key] for key in keys})
        held = dict(vars(self.flower))
        try:
            with _undisturbed():
                if steps:
                    setattr(self.flower, CURRENT, None)
                self.flower.configure_train(server_round, before, ConfigRecord(), _NO_GRID)
                arrays, _ = self.flower.aggregate_train(server_round, replies)
        except AggregationError as error:
            raise RunError(f"{self._failure(server_round, updates)}: {error}") from error
        if arrays is None:
            raise RunError(f"{self._failure(server_round, updates)}; it may need more of them")
        self._check_kept(held)
        # Some rules make float64 of float32, and all of them work on the CPU.
        made = {key: value.to(updates[0].shared[key]) for key, value in messages.decode(arrays).items()}
        return mean | made

    def state(self) -> Params:
        """Return the arrays that the rule remembers."""
        return {
            f"{name}/{type(held).__name__}/{key}": torch.from_numpy(np.array(value))
            for name, held in _remembered(self.flower).items()
            for key, value in (held.items() if isinstance(held, dict) else enumerate(held))
        }

    def load_state(self, state: Params) -> None:
        """Give the rule its arrays back."""
        held: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for path, value in state.items():
            name, kind, key = path.split("/", 2)
            held.setdefault((name, kind), {})[key] = value.numpy().copy()
        for (name, kind), arrays in held.items():
            setattr(self.flower, name, arrays if kind == "dict" else [arrays[str(k)] for k in range(len(arrays))])

    def _check_kept(self, before: Mapping[str, Any]) -> None:
        """Check that arrays which the rule has kept in this round are of a kind that `state` returns."""
        saved = {CURRENT, *_remembered(self.flower)}
        for name, value in vars(self.flower).items():
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
            has_arrays = any(isinstance(part, (np.ndarray, torch.Tensor, Array, ArrayRecord)) for part in parts)
            if name not in saved and has_arrays and before.get(name) is not value:
                raise RunError(
                    f"Flower's {type(self.flower).__name__} keeps self.{name}, {a_type(value)} that no "
                    "checkpoint would have; keep a dict or list of NumPy arrays"
                )

    def _failure(self, server_round: int, updates: Sequence[ClientUpdate]) -> str:
        return f"round {server_round}: Flower's {type(self.flower).__name__} made nothing of {len(updates)} updates"


# Flower's strategies take their clients from it, and this one's are there already.
_NO_GRID: Grid = None  # type: ignore[assignment]


@cache
def strategy_of(flower: type[FedAvg], docstring: str) -> type[FlowerRule]:
    """Return a strategy around one of Flower's that averages arrays, with its options."""
    hints = get_type_hints(flower.__init__)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(flower).parameters.items()
        if name not in NO_OPTIONS and hints[name] in (int, float, bool, str)
    }

    def construct(self: FlowerRule, model: nn.Module, **options: Any) -> None:
        chosen = {name: options[name] for name in defaults if name in options}
        FlowerRule.__init__(self, model, flower(**chosen), **options)

    declared = {name: Option(default, "Option of Flower's strategy.") for name, default in defaults.items()}
    members = {"__doc__": docstring, "__init__": construct, "__annotations__": {name: hints[name] for name in defaults}}
    return type(flower.__name__, (FlowerRule,), members | declared)


def _reply(server_round: int, update: ClientUpdate, keys: Sequence[str], weight: str) -> Message:
    """Write an update as the message that Flower's strategies read."""
    arrays = messages.encode({key: update.shared[key] for key in keys})
    content = RecordDict({messages.ARRAYS: arrays, messages.METRICS: MetricRecord({weight: update.num_examples})})
    metadata = Metadata(0, "", update.client, 0, "", str(server_round), 0.0, DEFAULT_TTL, MessageType.TRAIN)
    # Otherwise a reply would need the message that it answers.
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload]


def _remembered(rule: FedAvg) -> Containers:
    """Return the dicts and lists of arrays among a rule's attributes, except for the global model."""
    arrays = (np.ndarray, np.generic)
    return {
        name: held
        for name, held in vars(rule).items()
        if isinstance(held, (dict, list)) and held and name != CURRENT
        if all(isinstance(value, arrays) for value in (held.values() if isinstance(held, dict) else held))
    }


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep Flower's strategies from writing how many replies there are, and from waiting for Python's memory.

    NumPy does not warn of what overflows there: the average and what is remembered are checked.
    """
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    # Bulyan has all objects searched for cycles once for each array of each client.
    freeze = not gc.get_freeze_count()
    if freeze:
        gc.freeze()
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    finally:
        if freeze:
            gc.unfreeze()
        logger.setLevel(level)
