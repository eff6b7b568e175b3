"""Settings of local training, which are also the table ``[local]`` of an experiment."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ADAM = ("weight_decay", "betas", "eps", "amsgrad")
OPTIONS = {"sgd": ("weight_decay", "momentum", "nesterov"), "adam": ADAM, "adamw": ADAM}


@dataclass(frozen=True)
class LocalSettings:
    """Settings of local training; ranges are checked where they are read from a file.

    Parameters
    ----------
    epochs
        Passes over the client's training examples, in a phase without its own number.
    batch_size
        Number of examples in a mini-batch; the last one of an epoch may be smaller, none is dropped.
    lr, weight_decay
        As in `torch.optim`.
    momentum, nesterov
        Options of SGD, as in `torch.optim.SGD`.
    optimizer_state
        ``reset`` begins each round with an optimiser that has taken no step; ``keep`` with the state that the client's
        had after its last one, its momentum, or its moments and number of steps.
    optimizer
        SGD, Adam, or AdamW, as in `torch.optim`.
    betas, eps, amsgrad
        Options of Adam and AdamW.

    Raises
    ------
    ValueError
        If ``nesterov`` is set without momentum, or an option is set that the optimiser does not have.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    optimizer_state: Literal["reset", "keep"] = "reset"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False

    def __post_init__(self) -> None:
        self._check_options("optimizer", OPTIONS)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true: needs a momentum greater than 0")

    def _check_options(self, chosen: str, options: Mapping[str, Sequence[str]]) -> None:
        """Check that only options of what is chosen differ from their defaults."""
        entry = getattr(self, chosen)
        for name in {name: None for names in options.values() for name in names}:
            if name not in options[entry] and (value := getattr(self, name)) != getattr(LocalSettings, name):
                known = ", ".join(("lr", *options[entry]))
                owners = " or ".join(repr(each) for each, names in options.items() if name in names)
                raise ValueError(
                    f"{name} = {json.dumps(value)}: {chosen} = {entry!r} has no such option; leave it out, or choose "
                    f"{owners} (options of {entry!r}: {known})"
                )


# The defaults are those of plain SGD.
SGD = LocalSettings
