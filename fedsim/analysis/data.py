"""Data that models are measured on."""

from dataclasses import dataclass

from fedsim.data.dataset import Examples
from fedsim.training.evaluation import Criterion, cross_entropies


@dataclass(frozen=True)
class Data(Examples):
    """Examples to measure models on: ``inputs`` as the model takes them, and ``targets``, on the model's device.

    Parameters
    ----------
    criterion
        Maps outputs and targets of a batch to one loss per example.
    tolerance
        Barriers evaluate each mixed model on only as many examples as are needed to know its mean loss over all of them
        to within this, in nats, for at least 95 % of the rows; by default on all.
    """

    criterion: Criterion = cross_entropies
    tolerance: float | None = None
