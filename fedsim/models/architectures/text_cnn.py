"""Convolutional network for sentences."""

import torch
from torch import Tensor, nn

from fedsim.models.architectures.checks import positive, probability, sequence_length

# Embeddings begin uniform up to this, as in the paper's code; torch's normal ones learn far slower under SGD.
RANGE = 0.25


class TextCNN(nn.Module):
    """An embedding, convolutions of several widths side by side, their maxima over the sentence, and a classifier."""

    def __init__(
        self, classes: int, vocabulary: int, embedding: int, filters: int, widths: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.uniform_(self.embedding.weight, -RANGE, RANGE)
        self.conv = nn.ModuleList(nn.Conv1d(embedding, filters, width, padding=width // 2) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(filters * len(widths), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the sentences' classes, shape [n, classes]."""
        x = self.embedding(tokens).transpose(1, 2)
        features = [torch.relu(conv(x)).amax(2) for conv in self.conv]
        return self.fc(self.dropout(torch.cat(features, 1)))


def text_cnn(
    shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 0,
    embedding: int = 100,
    filters: int = 100,
    widths: tuple[int, ...] = (3, 4, 5),
    dropout: float = 0.5,
) -> nn.Module:
    """Build Kim's convolutional network that classifies sentences: ``embedding``, ``conv.0``, ``conv.1``, ..., ``fc``.

    Embeddings begin random and are trained, as in the paper's variant CNN-rand; the paper's have 300 numbers.

    Parameters
    ----------
    vocabulary
        Number of different tokens (default: as many as classes).
    embedding
        Width of a token's embedding.
    filters
        Number of filters of each width.
    widths
        Number of tokens that a filter sees.
    dropout
        Share of the features that is dropped in training.

    Raises
    ------
    ValueError
        If the inputs are not token sequences, a size is not positive, or the dropout is not in [0, 1).

    References
    ----------
    Kim 2014, Convolutional neural networks for sentence classification, arXiv 1408.5882.
    """
    sequence_length("text-cnn", shape)
    positive(embedding=embedding, filters=filters, widths=min(widths, default=0))
    probability(dropout=dropout)
    return TextCNN(classes, vocabulary or classes, embedding, filters, widths, dropout)
