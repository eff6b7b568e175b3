"""Data that models are measured on."""

from dataclasses import dataclass

from torch import Tensor

from fedsim.data.dataset import Examples
from fedsim.training.evaluation import Criterion, cross_entropies
from fedsim.training.targets import target_counts


@dataclass(frozen=True)
class Data(Examples):
    """Examples to measure models on: ``inputs`` as the model takes them, and ``targets``, on the model's device.

    Parameters
    ----------
    criterion
        Maps outputs and targets of a batch to one loss per example.
    tolerance
        Barriers evaluate each mixed model on only as many examples as are needed to know its mean loss over all of them
        to within this, in nats, for at least 95 % of the rows; by default, and where examples have different numbers
        of targets that count, on all.
    """

    criterion: Criterion = cross_entropies
    tolerance: float | None = None

    @property
    def target_counts(self) -> Tensor | None:
        """Number of targets of each example that count, shape [n]; None if all weigh the same."""
        return target_counts(self.targets) if self.criterion is cross_entropies else None
