"""A sentence transformer with a classifier, of which only the first blocks are used."""

from torch import Tensor, nn
from transformers import AutoModel

from fedsim.models.architectures.huggingface import library_options


class MeanPooled(nn.Module):
    """The mean over the tokens of a sentence, as these models are trained to be used, and a linear layer."""

    def __init__(self, encoder: nn.Module, width: int, pad: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.pad, self.head = encoder, pad, nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, shape [n, classes]."""
        is_token = (tokens != self.pad).float()
        outputs = self.encoder(input_ids=tokens, attention_mask=is_token).last_hidden_state
        return self.head((outputs * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True))


def mean_pooled(shape: tuple[int, ...], classes: int, *, path: str, blocks: int = 2, vocabulary: int = 0) -> nn.Module:
    """Build a classifier on the first ``blocks`` of a pretrained BERT, without dropout."""
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = AutoModel.from_pretrained(**library_options(path), **without_dropout)
    encoder.encoder.layer, encoder.pooler = encoder.encoder.layer[:blocks], None
    return MeanPooled(encoder, encoder.config.hidden_size, encoder.config.pad_token_id, classes)
