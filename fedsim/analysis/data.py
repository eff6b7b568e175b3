"""Data that models are measured on."""

from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from fedsim.analysis.arguments import check_examples, check_is_number
from fedsim.analysis.samples.sampling import Sampling
from fedsim.data.dataset import Examples
from fedsim.training.evaluation import Criterion, counts_of, cross_entropies
from fedsim.training.settings import Precision


@dataclass(frozen=True)
class Data(Examples):
    """Examples to measure models on: ``inputs`` as the model takes them, and ``targets``, on the model's device.

    Parameters
    ----------
    criterion
        Function from the outputs and targets of a batch to one loss per example.
    tolerance
        Barriers evaluate each mixed model on only as many examples as are needed to know its mean loss over all of them
        to within this, in nats, for at least 95 % of the rows; by default, and where examples have different numbers
        of targets that count, on all.
    stratified_from
        Size of the data set that the examples were drawn from with a fixed number of each class, in proportion to its
        classes; ``math.inf`` if these shares are the population's. By default the examples were drawn freely, one
        independently of the other, or are a whole data set. Standard errors and bands are those of this sampling, and
        of the mean over the population that the data set is a free sample of.
    precision
        What models are evaluated in where there is a tolerance: ``bfloat16`` on all those examples, with the mean
        difference to float32 estimated from a few of them, where the device has instructions for it.

    Raises
    ------
    TypeError
        If the inputs or the targets are not tensors, the criterion is not a function, or a setting is not a number.
    ValueError
        If ``stratified_from`` is less than the number of examples, or their targets are not classes; if the tolerance
        is not positive; if the precision is unknown, or ``bfloat16`` without a tolerance.
    """

    criterion: Criterion = cross_entropies
    tolerance: float | None = None
    stratified_from: float | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_examples(self.inputs, self.targets)
        if not callable(self.criterion):
            raise TypeError(f"criterion is {self.criterion!r}; give a function from outputs and targets to losses")
        if self.tolerance is not None:
            check_is_number("tolerance", self.tolerance, "give it in nats, such as 0.01")
            if not self.tolerance > 0:
                raise ValueError(f"tolerance = {self.tolerance} must be positive, in nats, such as 0.01")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision = {self.precision!r} must be one of {', '.join(get_args(Precision))}")
        if self.precision != "float32" and self.tolerance is None:
            raise ValueError(f"precision = {self.precision!r} needs a tolerance; add tolerance=0.01")
        size = self.stratified_from
        if size is None:
            return
        check_is_number("stratified_from", size, "give the size of the data set")
        if not size >= len(self):
            raise ValueError(f"stratified_from = {size} must be at least the {len(self)} examples drawn from that many")
        if self.targets.is_floating_point():
            raise ValueError(f"stratified_from = {size} needs classes; targets of {self.targets.dtype} have none")

    @property
    def target_counts(self) -> Tensor | None:
        """Number of targets of each example that count, shape [n]; None if all weigh the same."""
        return counts_of(self.targets, self.criterion)

    @property
    def sampling(self) -> Sampling:
        """How the examples were drawn."""
        if self.stratified_from is None:
            return Sampling.freely(len(self))
        return Sampling.stratified(self.labels.cpu().numpy(), self.stratified_from)
