"""What a client does in one round: the phases of its training, and what it reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsim.models.params import Params


@dataclass(frozen=True)
class Phase:
    """One stretch of local training.

    Parameters
    ----------
    trainable
        Layer group that is trained; all other layers are frozen.
    epochs, steps
        Passes over the client's examples, or mini-batches; at most one of them. Without either: the epochs of
        the run's ``[local]`` settings.
    proximal
        Weight mu of (mu / 2) ||w - w_0||^2 over the trained layers, added to the loss (FedProx, arXiv 1812.06127).
    lr
        Step size; that of the run's ``[local]`` settings if not given.
    trains
        What is trained: the client's ``model``, or a set of its rule that holds all entries of one.
    toward
        Where w_0 comes from, as it is when the phase begins: what is trained (``start``), the ``model``, or a set.
    label
        What the client's rule calls the phase, where it does something else in each.

    Raises
    ------
    ValueError
        If both epochs and steps are given, one of them or ``lr`` is not positive, or ``proximal`` is negative.
    """

    trainable: str = "all"
    epochs: int | None = None
    steps: int | None = None
    proximal: float = 0.0
    lr: float | None = None
    trains: str = "model"
    toward: str = "start"
    label: str = ""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"a phase has epochs = {self.epochs} and steps = {self.steps}; give one of them")
        if any(count is not None and count < 1 for count in (self.epochs, self.steps)):
            raise ValueError(f"a phase has epochs = {self.epochs}, steps = {self.steps}; it must be at least 1")
        if self.proximal < 0:
            raise ValueError(f"proximal = {self.proximal} must not be negative")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr = {self.lr} of a phase must be greater than 0")


@dataclass(frozen=True)
class LocalPlan:
    """What a client does in one round: phases, one after the other."""

    phases: tuple[Phase, ...] = (Phase(),)


@dataclass
class Passes:
    """Counts examples that pass through a model, forward, and back for gradients."""

    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Training:
    """What local training reports.

    Parameters
    ----------
    loss
        Mean of what was descended over the examples of the last epoch (or the last phase's steps), each taken before
        the step that it led to: cross-entropy in nats, or what the client's rule has in its place.
    examples_seen
        Examples in all mini-batches.
    momentum
        Momentum buffers by parameter name; empty without momentum.
    passes
        Examples passed forward and back, more than ``examples_seen`` where a rule takes several passes in a step.
    sets
        The rule's named parameter sets after training.
    """

    loss: float
    examples_seen: int
    momentum: Params = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)
    sets: Mapping[str, Params] = field(default_factory=dict)
