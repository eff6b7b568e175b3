"""Settings of local training, which are also the table ``[local]`` of an experiment."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]
# What each has besides the options that all have.
ADAM = ("betas", "eps", "amsgrad")
OPTIMIZERS = {"sgd": ("momentum", "nesterov"), "adam": ADAM, "adamw": ADAM}
SCHEDULES = {"constant": (), "cosine": ("end_factor",), "linear": ("end_factor",), "step": ("step_size", "gamma")}


@dataclass(frozen=True)
class LocalSettings:
    """Settings of local training; ranges are checked where they are read from a file.

    Parameters
    ----------
    epochs
        Passes over the client's training examples, in a phase without its own number.
    batch_size
        Number of examples in a mini-batch; the last one of an epoch may be smaller, none is dropped.
    lr
        Step size, as in `torch.optim`.
    weight_decay
        Weight decay, as in `torch.optim`.
    momentum
        Momentum of SGD, as in `torch.optim.SGD`.
    nesterov
        Whether the momentum is Nesterov's.
    optimizer_state
        ``reset`` begins each round with an optimiser that has taken no step; ``keep`` with the state that the client's
        had after its last one, its momentum, or its moments and number of steps.
    optimizer
        SGD, Adam, or AdamW, as in `torch.optim`; from Python also a function that makes another, given a list of
        parameter groups and the step size.
    betas
        Decay rates of the first and second moments of Adam and AdamW.
    eps
        Number that Adam and AdamW add to the root of the second moment.
    amsgrad
        Whether Adam and AdamW use the largest second moment so far (AMSGrad).
    schedule
        Course of the step size after the warm-up: it stays (``constant``), falls to ``end_factor`` times ``lr`` along
        half a ``cosine`` or a line (``linear``), or is multiplied by ``gamma`` every ``step_size`` steps (``step``).
    schedule_over
        Whether the schedule spans all rounds of the ``run``, or begins again in each ``round``.
    warmup
        Number of steps in which the step size rises linearly, from ``lr / (warmup + 1)`` in the first.
    end_factor
        Factor of `lr` with which the schedules ``cosine`` and ``linear`` end.
    step_size
        Number of steps after which the schedule ``step`` multiplies the step size by ``gamma``.
    gamma
        Factor of the schedule ``step``.
    clip_norm
        Largest norm of the gradient of all that is trained, as in `torch.nn.utils.clip_grad_norm_` (default: no limit).
        It acts on what the optimiser takes: after a rule has changed it and with the proximal term, without weight
        decay.
    label_smoothing
        Share of each target that is spread evenly over all classes in the training loss.
    lr_scale
        Factors of the step size by layer expression; 1 for layers that no expression names.
    weight_decay_on
        Whether ``all`` parameters decay, or the ``weights`` only: no biases, and nothing in normalisation layers.
    order
        Whether each client draws its ``own`` order of its examples in a run, or all draw the ``same``, so that clients
        with equal data take equal batches.
    precision
        Type in which forward passes compute: the model's own, or ``bfloat16`` by autocast. Parameters, their gradients
        and what the optimiser keeps stay as they are.

    Raises
    ------
    ValueError
        If an option needs another, or is set and what is chosen does not have it.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    optimizer_state: Literal["reset", "keep"] = "reset"
    optimizer: Literal["sgd", "adam", "adamw"] | Callable[[list[dict[str, Any]], float], Any] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    schedule_over: Literal["run", "round"] = "run"
    warmup: int = 0
    end_factor: float = 0.0
    step_size: int | None = None
    gamma: float = 0.1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    weight_decay_on: Literal["all", "weights"] = "all"
    order: Literal["own", "same"] = "own"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if callable(self.optimizer):
            self._check_options_of_torch()
        else:
            self._check_options("optimizer", OPTIMIZERS)
        self._check_options("schedule", SCHEDULES)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true: needs a momentum greater than 0")
        if self.weight_decay_on == "weights" and self.weight_decay == 0:
            raise ValueError("weight_decay_on = 'weights': needs a weight_decay greater than 0")
        if self.schedule == "step" and self.step_size is None:
            raise ValueError("schedule = 'step': needs step_size, the steps after which gamma multiplies the step size")

    def _check_options_of_torch(self) -> None:
        """Check that no option of torch's optimisers differs from its default."""
        names = {name for options in OPTIMIZERS.values() for name in options} | {"weight_decay", "weight_decay_on"}
        if odd := [name for name in sorted(names) if getattr(self, name) != getattr(LocalSettings, name)]:
            raise ValueError(
                f"{odd[0]} = {json.dumps(getattr(self, odd[0]))}: belongs to 'sgd', 'adam' and 'adamw'; leave it out, "
                "or make it an option of your own optimiser"
            )

    def _check_options(self, chosen: str, options: Mapping[str, Sequence[str]]) -> None:
        """Check that only options of what is chosen differ from their defaults."""
        entry = getattr(self, chosen)
        for name in {name: None for names in options.values() for name in names}:
            if name not in options[entry] and (value := getattr(self, name)) != getattr(LocalSettings, name):
                known = ", ".join(options[entry]) or "none"
                owners = " or ".join(repr(each) for each, names in options.items() if name in names)
                raise ValueError(
                    f"{name} = {json.dumps(value)}: {chosen} = {entry!r} has no such option; leave it out, or choose "
                    f"{owners} ({entry!r} has: {known})"
                )


def without_schedule(settings: LocalSettings) -> LocalSettings:
    """Return the settings with a constant step size."""
    every = {name for names in SCHEDULES.values() for name in names} | {"schedule", "schedule_over", "warmup"}
    return replace(settings, **{name: getattr(LocalSettings, name) for name in every})


# The defaults are those of plain SGD.
SGD = LocalSettings
