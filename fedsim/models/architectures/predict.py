"""The predictions of a model of token sequences."""

from typing import Literal

from torch import Tensor, nn

Predict = Literal["each", "last"]


def sequence_logits(features: Tensor, classifier: nn.Module, predict: Predict) -> Tensor:
    """Return the logits at each position, or at the last one.

    Parameters
    ----------
    features
        Features of each position, shape [n, length, width].
    classifier
        Module that maps the last dimension to one logit per class.

    Returns
    -------
    Tensor
        Logits, shape [n, classes, length] for ``each``, [n, classes] for ``last``.
    """
    if predict == "last":
        return classifier(features[:, -1])
    return classifier(features).transpose(1, 2)
