"""What clients send up in a round, and what a method makes of it, checked."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.errors import DivergedError, RunError
from fedsim.models.layers import Layers
from fedsim.models.params import Params, is_finite
from fedsim.models.tensors import name_type
from fedsim.shortening import a_type
from fedsim.training.checked import not_tensors

SQUARES_OVERFLOW = 1e15  # norm from which squares of single values may soon leave the range of float32


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends up after local training.

    Parameters
    ----------
    shared
        The layers that are shared in this round.
    num_examples
        Training examples of the client: its weight in the average.
    metrics
        What the client measured while training.
    probe
        Its other layers, where the analysis asked for them; not counted as traffic.
    sets
        Named parameter sets of its rule.
    measured
        Model whose barriers the strategy gets in the place of its own, if there is one; not counted as traffic.
    missing
        Why its own model has no finite loss, if it has none.
    norm
        L2 distance of the shared layers from where the client began.
    variances
        Variance of the entries of each tensor in the shared layers.
    is_stale
        Whether it is the client's update of an earlier round, so that it did nothing with what it received.
    """

    client: int
    shared: Params
    num_examples: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    probe: Params = field(default_factory=dict)
    sets: Mapping[str, Params] = field(default_factory=dict)
    measured: Params = field(default_factory=dict)
    missing: str = ""
    norm: float = 0.0
    variances: Mapping[str, float] = field(default_factory=dict)
    is_stale: bool = False

    def is_finite(self, layers: Layers) -> bool:
        """Return whether the layers that the client keeps are finite too; a model that diverged has no barriers.

        Buffers that are no statistics do not count: masks are infinite.
        """
        keys = set(layers.keys(layers.names))
        own = (*self.probe.items(), *self.measured.items())
        return all(is_finite({key: value}) for key, value in own if key in keys)


@dataclass
class Received:
    """What came back in a round.

    Parameters
    ----------
    updates
        The valid ones, sorted by client; where they were averaged as they came, without their layers, except for
        factors of adapters.
    left_out
        Why each other participant is left out of the average.
    average
        Average of the shared layers, where they were averaged as they came.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    average: Params | None = None

    @property
    def missing(self) -> dict[int, str]:
        """Why the own models of clients with a valid update have no finite loss."""
        return {update.client: update.missing for update in self.updates if update.missing}

    @property
    def trained(self) -> list[int]:
        """Clients with a valid update of this round; one that sends an earlier update has taken nothing in this one."""
        return [update.client for update in self.updates if not update.is_stale]

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Leave more clients out of the average."""
        if reasons:
            self.left_out |= reasons
            self.updates = [update for update in self.updates if update.client not in reasons]


def check_state(state: Callable[[], Params], model: Params, updates: Sequence[ClientUpdate], where: str) -> None:
    """Check that updates so large that their squares overflow have not spoilt what a strategy remembers of the model.

    A moment that is infinite would keep the model as it is from then on, and nothing else would show it.

    Parameters
    ----------
    state
        Function that returns what the strategy remembers; only paths that end with an entry of the model count.

    Raises
    ------
    DivergedError
        If a value is not finite.
    """
    largest = max((update.norm for update in updates), default=0.0)
    if largest < SQUARES_OVERFLOW:
        return
    for path, value in state().items():
        if path.rpartition("/")[2] in model and not is_finite({path: value}):
            raise DivergedError(
                f"{where} remembers {path!r} with values that are not finite, after an update of norm {largest:.4g}; "
                "strategy.max_update_norm leaves such updates out"
            )


def misfit(sent: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return which entry has another shape or type than the one expected under its key; empty if all are alike."""
    for key, value in sent.items():
        like = expected[key]
        if value.shape != like.shape:
            return f"{key} has shape {tuple(value.shape)}, not {tuple(like.shape)}"
        if value.dtype != like.dtype:
            return f"{key} has the type {name_type(value.dtype)}, not {name_type(like.dtype)}"
    return ""


def unlike_others(updates: Sequence[ClientUpdate], model: Params) -> dict[int, str]:
    """Return why sets of some clients cannot be averaged with the others': a shape or type that most do not have.

    Parameters
    ----------
    model
        Model whose entries decide where as many clients have one as the other, if it has the key.
    """
    kinds: dict[tuple[str, str], dict[int, tuple[torch.Size, torch.dtype]]] = {}
    for update in updates:
        for name, entries in update.sets.items():
            for key, value in entries.items():
                kinds.setdefault((name, key), {})[update.client] = value.shape, value.dtype
    found: dict[int, str] = {}
    for (name, key), by_client in kinds.items():
        if len(counts := Counter(by_client.values())) == 1:
            continue
        like = model.get(key)
        own = None if like is None else (like.shape, like.dtype)
        shape, dtype = max(counts, key=lambda kind: (counts[kind], kind == own))
        for client, kind in by_client.items():
            if kind != (shape, dtype):
                described = f"{key} with shape {tuple(kind[0])} and type {name_type(kind[1])}"
                most = f"most clients' has {tuple(shape)} and {name_type(dtype)}"
                found.setdefault(client, f"its {name} has {described}; {most}")
    return found


def check_average(averaged: object, model: Params, where: str) -> Params:
    """Check what a strategy's `aggregate` returned, and give it the dtypes of the model.

    Parameters
    ----------
    where
        Names the hook in a message.

    Raises
    ------
    RunError
        If it is not a dict of finite tensors with keys and shapes of the model.
    """
    part = check_part(averaged, model, where)
    for key, value in part.items():
        if not is_finite({key: value}):
            raise DivergedError(f"{where} returns {key!r} with values that are not finite")
    return part


def check_part(part: object, model: Params, where: str) -> Params:
    """Check entries of a model as `check_average`, which may not be finite."""
    if not isinstance(part, Mapping):
        raise RunError(f"{where} returns {a_type(part)}; it must be a dict of entries of the model")
    for key, value in part.items():
        if key not in model:
            raise RunError(f"{where} returns {key!r}, which is no entry of the model: {', '.join(model)}")
        if not isinstance(value, torch.Tensor) or value.shape != model[key].shape:
            raise RunError(f"{where} returns {key!r} that is not a tensor of shape {tuple(model[key].shape)}")
    return {key: value.to(model[key].dtype) for key, value in part.items()}


def check_sets(sets: object, taken: Collection[str], where: str) -> Mapping[str, Params]:
    """Check named parameter sets for a client, none of which may have a name that is taken."""
    if not isinstance(sets, Mapping):
        raise RunError(f"{where} returns {a_type(sets)}; it must be a dict of parameter sets by name")
    for name, entries in sets.items():
        if name in taken:
            raise RunError(f"{where} returns a set {name!r}, which messages use already; give it another name")
        if wrong := not_tensors(entries):
            raise RunError(f"{where} returns {wrong} as the set {name!r}; it must be a dict of tensors by key")
    return sets
