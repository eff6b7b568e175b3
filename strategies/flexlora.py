"""The products of the clients' factors are averaged, and factorised again."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.models.params import Params
from fedsim.models.ranks import cut_to_rank
from fedsim.strategy import ClientUpdate, Option
from strategies.lora import Lora, stacked


class FlexLora(Lora):
    """Average the products of LoRA factors, and take the closest factors of the same rank: FlexLoRA.

    References
    ----------
    Bai et al. 2024, Federated fine-tuning of large language models under heterogeneous tasks and client resources,
    arXiv 2402.11505.

    Notes
    -----
    With the mean product's singular values S, new factors are B = U S and A = V', cut at the adapters' rank: exact if
    the clients' factors together have no higher one. Where ranks differ, a client takes the first rows and columns of
    these, which are the closest factors of its own rank.
    """

    takes_ranks = True

    share: Literal["both"] = Option("both", "Factors that are averaged: both, made of the mean of their products.")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged = self.average(updates)
        for each in self.factors:
            factors = best_factors(*stacked(each, updates), len(averaged[each.first]))
            for key, value in zip((each.second, each.first), factors, strict=True):
                averaged[key] = value.to(averaged[key].dtype)
        return averaged

    def for_client(self, server_round: int, client: int) -> Params:
        taken = cut_to_rank(self.factors, super().for_client(server_round, client), client)
        for each in self.factors if taken else ():
            if each.ranks and each.second in taken:
                taken[each.second] /= each.ratio_of(client)  # its scale is that much larger
        return taken


def best_factors(second: Tensor, first: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the closest product of a rank to ``second @ first``, which is never made itself.

    Returns
    -------
    second, first
        Shapes [outputs, rank] and [rank, inputs].
    """
    left, upper = torch.linalg.qr(second)
    right, lower = torch.linalg.qr(first.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    found = min(rank, len(s))
    # Where a layer, or the clients' factors together, are smaller than the rank, the rest is 0.
    lacking = rank - found
    return pad(left @ (u[:, :found] * s[:found]), (0, lacking)), pad(v[:found] @ right.T, (0, 0, 0, lacking))
