"""A client's training in one round: its phases, and what it reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedsim.models.params import Params


@dataclass(frozen=True)
class Phase:
    """One phase of local training.

    Parameters
    ----------
    trainable
        Layer group to train; all other layers are frozen.
    epochs, steps
        Number of passes over the client's examples, or of mini-batches; at most one of the two. Default: the epochs of
        the run's ``[local]`` settings.
    proximal
        Weight mu of (mu / 2) ||w - w_0||^2 over the trained layers, added to the loss (FedProx, arXiv 1812.06127).
    lr
        Step size (default: that of the run's ``[local]`` settings).
    trains
        Parameters to train: the client's ``model``, or a set of its rule that holds all entries of a model.
    toward
        Source of w_0 at the beginning of the phase: the trained parameters (``start``), the ``model``, or a set.
    lr_scale
        Factors of the step size by layer expression, on top of those of the run.
    label
        Name of the phase for the client's rule, if it treats phases differently.

    Raises
    ------
    ValueError
        If both epochs and steps are given, one of them, ``lr`` or a factor of it is not positive, or ``proximal`` is
        negative.
    """

    trainable: str = "all"
    epochs: int | None = None
    steps: int | None = None
    proximal: float = 0.0
    lr: float | None = None
    trains: str = "model"
    toward: str = "start"
    label: str = ""
    lr_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"a phase has epochs = {self.epochs} and steps = {self.steps}; give one of them")
        if any(count is not None and count < 1 for count in (self.epochs, self.steps)):
            raise ValueError(f"a phase has epochs = {self.epochs}, steps = {self.steps}; it must be at least 1")
        if self.proximal < 0:
            raise ValueError(f"proximal = {self.proximal} must not be negative")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr = {self.lr} of a phase must be greater than 0")
        for expression, scale in self.lr_scale.items():
            if scale <= 0:
                raise ValueError(f"lr_scale = {scale} for {expression!r} of a phase must be greater than 0")


@dataclass(frozen=True)
class LocalPlan:
    """A client's training in one round: phases, one after the other.

    Raises
    ------
    ValueError
        If the phases are something else.
    """

    phases: tuple[Phase, ...] = (Phase(),)

    def __post_init__(self) -> None:
        if not isinstance(self.phases, Sequence) or not all(isinstance(phase, Phase) for phase in self.phases):
            raise ValueError(f"phases = {self.phases!r} must be a tuple of phases, as in LocalPlan((Phase('head'),))")


@dataclass
class Passes:
    """Counts of examples passed through a model, forward, and backward for gradients."""

    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Training:
    """The report of local training.

    Parameters
    ----------
    loss
        Mean loss over the examples of the last epoch (or the last phase's steps), each before the step that it led to:
        cross-entropy in nats, or the loss of the client's rule.
    examples_seen
        Number of examples in all mini-batches.
    optimizer_state
        What the optimiser keeps, by parameter name: momentum buffers of SGD; of Adam and AdamW ``exp_avg/<name>``,
        ``exp_avg_sq/<name>`` and ``step/<name>``, as `torch.optim` calls them. Empty for SGD without momentum.
    passes
        Examples passed forward and backward, more than ``examples_seen`` if a rule takes several passes in a step.
    sets
        The rule's named parameter sets after training.
    """

    loss: float
    examples_seen: int
    optimizer_state: Params = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)
    sets: Mapping[str, Params] = field(default_factory=dict)
