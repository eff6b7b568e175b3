"""Mixtures of experts: feed-forward blocks whose hidden units work in groups, each weighted by a gate."""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class TopKSoftmax(nn.Module):
    """Softmax over the ``k`` largest entries along the last dimension; all others are 0.

    Entries that are equal to the k-th largest count too.
    """

    dim = -1

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores: Tensor) -> Tensor:
        """Return the weights, shape [..., n] like ``scores``; along the last dimension they sum to 1."""
        least = torch.topk(scores.detach(), self.k, -1)[0].narrow(-1, self.k - 1, 1)
        return scores.masked_fill(scores < least, -math.inf).softmax(-1)


class Down(nn.Module):
    """Last layers of experts: ``sum_i g_i (B_i h_i + v_i)``, where the hidden units are multiplied by g_i before.

    Attributes
    ----------
    weight
        The matrices B_i, transposed and stacked, shape [experts * hidden, width].
    bias
        The vectors v_i, shape [experts, width].
    """

    def __init__(self, num_experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts * hidden, width))
        self.bias = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, weighted: Tensor, gates: Tensor) -> Tensor:
        """Return the sum, shape [..., width], of hidden units [..., experts * hidden] and gates [..., experts]."""
        return weighted @ self.weight + gates @ self.bias


class Experts(nn.Module):
    """Networks with one hidden layer, ``E_i(x) = B_i f(A_i x + u_i) + v_i``, of which a weighted sum is returned.

    The entries of all experts are stacked along axis 0 of each tensor: rows ``i * hidden`` to ``(i + 1) * hidden`` of
    ``up.weight`` are A_i, those of ``down.weight`` B_i transposed, row i of ``down.bias`` is v_i.
    """

    def __init__(self, width: int, hidden: int, num_experts: int, activation: nn.Module) -> None:
        super().__init__()
        self.sizes = (num_experts, hidden)
        self.up = nn.Linear(width, num_experts * hidden)
        self.act = activation
        self.down = Down(num_experts, hidden, width)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return the sum over experts, shape [..., width] like ``x``, with ``gates`` of shape [..., experts]."""
        hidden = self.act(self.up(x)).unflatten(-1, self.sizes) * gates.unsqueeze(-1)
        return self.down(hidden.flatten(-2), gates)


class MixtureOfExperts(nn.Module):
    """Feed-forward block ``sum_i g_i(x) E_i(x)``, with the gate g = softmax(W x + b), and experts that are always on.

    Every expert is computed for every token, also where the gate is 0, so that one program fits all tokens. The
    always-on experts are one network with all their hidden units, as in DeepSeek's models, and one bias.

    Parameters
    ----------
    top_k
        Number of experts with the largest scores, over which the softmax is taken; all of them make a dense mixture.
    num_shared_experts
        Number of experts that are always on, with weight 1.

    References
    ----------
    Tran et al. 2025, On linear mode connectivity of mixture-of-experts architectures, arXiv 2509.11348; shared experts:
    Dai et al. 2024, DeepSeekMoE, arXiv 2401.06066.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        top_k: int,
        num_shared_experts: int,
        activation: nn.Module,
        dropout: float,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts)
        self.softmax = nn.Softmax(-1) if top_k == num_experts else TopKSoftmax(top_k)
        self.experts = Experts(width, hidden, num_experts, activation)
        self.shared_experts = _network(width, num_shared_experts * hidden, activation) if num_shared_experts else None
        self.dropout = nn.Dropout(dropout)
        # Xavier's bound of a single expert, as torchvision draws the feed-forward blocks of its transformers.
        bound = math.sqrt(6 / (width + hidden))
        for name, parameter in self.named_parameters():
            if name.endswith(("up.weight", "down.weight")):
                nn.init.uniform_(parameter, -bound, bound)
            elif not name.startswith("gate."):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shape [..., width] like ``x``."""
        mixed = self.experts(x, self.softmax(self.gate(x)))
        return self.dropout(mixed if self.shared_experts is None else mixed + self.shared_experts(x))


def _network(width: int, hidden: int, activation: nn.Module) -> nn.Module:
    layers = {"up": nn.Linear(width, hidden), "act": activation, "down": nn.Linear(hidden, width)}
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True)
class Mixtures:
    """The blocks of a transformer that are mixtures of experts.

    Parameters
    ----------
    blocks
        Numbers of these blocks.
    hidden
        Hidden units of each expert.
    """

    blocks: frozenset[int]
    hidden: int
    num_experts: int
    top_k: int
    num_shared_experts: int

    def block(self, width: int, activation: nn.Module, dropout: float = 0.0) -> MixtureOfExperts:
        """Build the feed-forward part of a block, with weights from torch's global random state."""
        sizes = (self.num_experts, self.top_k, self.num_shared_experts)
        return MixtureOfExperts(width, self.hidden, *sizes, activation, dropout)


def mixtures(
    depth: int,
    hidden: int,
    *,
    num_experts: int = 0,
    top_k: int = 0,
    num_shared_experts: int = 0,
    expert_width: int = 0,
    moe_blocks: tuple[int, ...] = (),
) -> Mixtures:
    """Return which blocks of a transformer are mixtures of experts, by the options of the model.

    Parameters
    ----------
    depth
        Number of the model's blocks.
    hidden
        Hidden units of the feed-forward part of a block that is no mixture.
    num_experts
        Number of experts in a block's feed-forward part, weighted by a gate; 0 for blocks without experts.
    top_k
        Number of experts that the gate chooses for each token; 0 for all.
    num_shared_experts
        Number of further experts, which work for every token with weight 1.
    expert_width
        Width of the hidden layer of each expert; 0 for that of a block without experts.
    moe_blocks
        Numbers of the blocks with experts, from 0, or from -1 backwards; by default all blocks.

    Raises
    ------
    ValueError
        If an option is out of range, or given without ``num_experts``.
    """
    given = {"top_k": top_k, "num_shared_experts": num_shared_experts, "expert_width": expert_width}
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"{name} = {value} must be at least 0")
    if not num_experts:
        options: dict[str, object] = {**given, "moe_blocks": list(moe_blocks)}
        if unused := [f"{name} = {value}" for name, value in options.items() if value]:
            raise ValueError(f"{unused[0]} needs experts; set num_experts to 2 or more")
        return Mixtures(frozenset(), hidden, 0, 0, 0)
    if num_experts < 2:
        raise ValueError(f"num_experts = {num_experts} must be at least 2, or 0 for a model without experts")
    if top_k > num_experts:
        raise ValueError(f"top_k = {top_k} must be at most num_experts = {num_experts}; 0 takes all experts")
    if top_k == 1:
        raise ValueError("top_k = 1 would leave the gate untrained: a softmax over one expert is 1; take 2 or more")
    for block in moe_blocks:
        if not -depth <= block < depth:
            raise ValueError(f"moe_blocks = {list(moe_blocks)}: {block} must be from {-depth} to {depth - 1}")
    blocks = frozenset(block % depth for block in moe_blocks) or frozenset(range(depth))
    return Mixtures(blocks, expert_width or hidden, num_experts, top_k or num_experts, num_shared_experts)
