"""A small GPT-2: a causal transformer for token sequences."""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fedsim.models.architectures.checks import heads_divide_width, positive, probability, sequence_length
from fedsim.models.architectures.experts import Mixtures, mixtures
from fedsim.models.architectures.predict import Predict, sequence_logits
from fedsim.options import with_options_of


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and those before it."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values, shape [n, length, width] like ``x``."""
        projected = self.c_attn(x).unflatten(2, (3, self.heads, -1))
        query, key, value = (projected.select(2, i).transpose(1, 2) for i in range(3))
        if self.training and self.attn_dropout.p > 0:
            # torch's function would draw from its global random state.
            scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[3])
            later = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
            attended = self.attn_dropout(scores.masked_fill(later, -math.inf).softmax(3)) @ value
        else:
            attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.resid_dropout(self.c_proj(attended.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a hidden layer of four times the width, or experts, each on normalised inputs and added to them."""

    def __init__(self, heads: int, width: int, dropout: float, experts: Mixtures | None = None) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(heads, width, dropout)
        self.ln_2 = nn.LayerNorm(width)
        make = feed_forward if experts is None else experts.block
        self.mlp = make(width, nn.GELU(approximate="tanh"), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shape [n, length, width] like ``x``."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def feed_forward(width: int, activation: nn.Module, dropout: float) -> nn.Module:
    """Build a network with a hidden layer of four times the width."""
    up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return nn.Sequential(OrderedDict(c_fc=up, gelu=activation, c_proj=down, dropout=nn.Dropout(dropout)))


class GPT(nn.Module):
    """Decoder-only transformer with GPT-2's names; where it predicts tokens, both embeddings may be one tensor."""

    def __init__(
        self,
        length: int,
        classes: int,
        vocabulary: int,
        depth: int,
        heads: int,
        width: int,
        dropout: float,
        predict: Predict,
        experts: Mixtures,
        tied: bool,
    ) -> None:
        super().__init__()
        self.predict = predict
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.Sequential(
            *(Block(heads, width, dropout, experts if i in experts.blocks else None) for i in range(depth))
        )
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, classes, bias=False)
        if tied and classes == vocabulary:
            self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # GPT-2 scales what is added to the residual stream by the number of additions.
                additions = 2 * depth if name.endswith(("c_proj.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(additions))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, or of the class; sequences may be shorter than the model's length."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        return sequence_logits(self.ln_f(self.h(x)), self.lm_head, self.predict)


@with_options_of(mixtures)
def gpt(
    shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 0,
    depth: int = 4,
    heads: int = 4,
    width: int = 128,
    dropout: float = 0.0,
    predict: Predict = "each",
    tied: bool = True,
    **experts: Any,
) -> nn.Module:
    """Build a small GPT-2: ``wte``, ``wpe``, the blocks ``h.0``, ``h.1``, ..., ``ln_f``; the head is ``wte``.

    The classifier ``lm_head`` shares its weight with the input embedding ``wte``, so the two are one layer. If they are
    not ``tied``, or there are not as many classes as tokens, it has its own weight, and is the head.

    Parameters
    ----------
    vocabulary
        Number of different tokens (default: as many as classes).
    depth, heads
        Number of blocks, and of attention heads in each block.
    width
        Width of a token.
    dropout
        Share of the embeddings, attention weights and outputs of the blocks' branches that is dropped in training.
    predict
        Prediction at ``each`` position, of the next token, or only at the ``last`` one: of the token that follows or of
        the class of the whole sequence.
    tied
        Whether input and output embedding are one tensor, as in GPT-2. Where they are not, the residual stream of two
        models can be aligned by rotations.
    **experts
        Options of `fedsim.models.architectures.experts.mixtures`.

    Raises
    ------
    ValueError
        If the inputs are not token sequences, a size is not positive, ``heads`` does not divide ``width``, the dropout
        is not in [0, 1), or an option of experts is out of range.

    References
    ----------
    Radford et al. 2019, Language models are unsupervised multitask learners, OpenAI (GPT-2).
    """
    length = sequence_length("gpt", shape)
    positive(depth=depth, heads=heads, width=width)
    heads_divide_width(heads, width)
    probability(dropout=dropout)
    mixed = mixtures(depth, 4 * width, **experts)
    return GPT(length, classes, vocabulary or classes, depth, heads, width, dropout, predict, mixed, tied)
