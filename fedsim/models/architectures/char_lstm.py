"""The character LSTM of the FedAvg paper."""

from torch import Tensor, nn

from fedsim.models.architectures.checks import positive, sequence_length
from fedsim.models.architectures.predict import Predict, next_token_logits


class CharLSTM(nn.Module):
    """An embedding, LSTM layers and a classifier.

    Each LSTM layer is a separate module, so that it is a separate layer in the layer language too.
    """

    def __init__(self, classes: int, embedding: int, hidden: int, depth: int, predict: Predict) -> None:
        super().__init__()
        self.predict = predict
        self.embedding = nn.Embedding(classes, embedding)
        self.lstm = nn.ModuleList(nn.LSTM(hidden if i else embedding, hidden, batch_first=True) for i in range(depth))
        self.fc = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token."""
        x = self.embedding(tokens)
        for lstm in self.lstm:
            x, _ = lstm(x)
        return next_token_logits(x, self.fc, self.predict)


def char_lstm(
    shape: tuple[int, ...],
    classes: int,
    *,
    embedding: int = 8,
    hidden: int = 256,
    depth: int = 2,
    predict: Predict = "each",
) -> nn.Module:
    """Build the character LSTM of the FedAvg paper: ``embedding``, ``lstm.0``, ``lstm.1``, ``fc``.

    torch's LSTM has two bias vectors where the paper's has one, and no peephole connections, which the paper's number
    of parameters implies.

    Parameters
    ----------
    embedding
        Width of a token's embedding.
    hidden, depth
        Width and number of the LSTM layers.
    predict
        Prediction of the next token at ``each`` position, or only after the ``last`` (as in LEAF, arXiv 1812.01097).

    Raises
    ------
    ValueError
        If the inputs are not token sequences, or a size is not positive.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629.
    """
    sequence_length("char-lstm", shape)
    positive(embedding=embedding, hidden=hidden, depth=depth)
    return CharLSTM(classes, embedding, hidden, depth, predict)
