"""What a model of token sequences predicts."""

from typing import Literal

from torch import Tensor, nn

Predict = Literal["each", "last"]


def next_token_logits(features: Tensor, classifier: nn.Module, predict: Predict) -> Tensor:
    """Return the logits of the next token after each position, or after the last.

    Parameters
    ----------
    features
        Shape [n, length, width].
    classifier
        Maps the last dimension to one logit per token of the vocabulary.

    Returns
    -------
    Tensor
        Shape [n, classes, length] for ``each``, [n, classes] for ``last``.
    """
    if predict == "last":
        return classifier(features[:, -1])
    return classifier(features).transpose(1, 2)
