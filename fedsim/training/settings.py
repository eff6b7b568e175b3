"""Settings of local training, which are also the table ``[local]`` of an experiment."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LocalSettings:
    """Settings of local training; ranges are checked where they are read from a file.

    Parameters
    ----------
    epochs
        Passes over the client's training examples, in a phase without its own number.
    batch_size
        Number of examples in a mini-batch; the last one of an epoch may be smaller, none is dropped.
    lr, momentum, weight_decay, nesterov
        As in `torch.optim.SGD`.
    optimizer_state
        ``reset`` starts the momentum at zero each round, ``keep`` takes it from the client's last one.

    Raises
    ------
    ValueError
        If ``nesterov`` is set without momentum.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    optimizer_state: Literal["reset", "keep"] = "reset"

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true: needs a momentum greater than 0")


# The defaults are those of plain SGD.
SGD = LocalSettings
