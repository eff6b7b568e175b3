"""The character LSTM of the FedAvg paper."""

from torch import Tensor, nn

from fedsim.models.architectures.checks import positive, sequence_length
from fedsim.models.architectures.predict import Predict, sequence_logits


class CharLSTM(nn.Module):
    """An embedding, LSTM layers and a classifier.

    Each LSTM layer is a separate module, so that it is a separate layer in the layer language too.
    """

    def __init__(
        self, classes: int, vocabulary: int, embedding: int, hidden: int, depth: int, predict: Predict
    ) -> None:
        super().__init__()
        self.predict = predict
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.ModuleList(nn.LSTM(hidden if i else embedding, hidden, batch_first=True) for i in range(depth))
        self.fc = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, or of the class."""
        x = self.embedding(tokens)
        for lstm in self.lstm:
            x, _ = lstm(x)
        return sequence_logits(x, self.fc, self.predict)


def char_lstm(
    shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 0,
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
    vocabulary
        Number of different tokens (default: as many as classes).
    embedding
        Width of a token's embedding.
    hidden, depth
        Width and number of the LSTM layers.
    predict
        Prediction at ``each`` position, of the next token, or only at the ``last`` one: of the token that follows, as
        in LEAF (arXiv 1812.01097), or of the class of the whole sequence.

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
    return CharLSTM(classes, vocabulary or classes, embedding, hidden, depth, predict)
