"""The loss that local training descends. Evaluation has its own, which no setting of training changes."""

from dataclasses import dataclass

from torch import Tensor

from fedsim.training.targets import mean_cross_entropy, member_cross_entropies


@dataclass(frozen=True)
class TrainingLoss:
    """Cross-entropy in nats, over the targets that count.

    Parameters
    ----------
    label_smoothing
        Share of each target that is spread evenly over all classes, as in `torch.nn.functional.cross_entropy`.
    """

    label_smoothing: float = 0.0

    def mean(self, logits: Tensor, targets: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the loss of a mini-batch, of `mean_cross_entropy`'s arguments."""
        return mean_cross_entropy(logits, targets, real, self.label_smoothing)

    def of_members(self, logits: Tensor, targets: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the loss of each of several members, shape [members], of `member_cross_entropies`' arguments."""
        return member_cross_entropies(logits, targets, real, self.label_smoothing)
