"""The factors of LoRA travel: both, one of them, or one after the other."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.models.adapters import Factors, factors_of
from fedsim.models.layers import LayerGroup
from fedsim.strategy import ClientUpdate, LocalPlan, Option, Phase, Strategy


class Lora(Strategy):
    """Average the factors of LoRA adapters, each by itself: both, one of them, or each in turn.

    References
    ----------
    FedIT: Zhang et al. 2023, arXiv 2305.05644; FedSA-LoRA: Guo et al. 2025, arXiv 2410.01463; FFA-LoRA: Sun et al.
    2024, arXiv 2403.12313; RoLoRA: Chen et al. 2025, arXiv 2502.01755.

    Notes
    -----
    The weight of a layer is W + (alpha / rank) B A. The average of both factors by themselves is not that of their
    products; if all clients have the same A, or the same B, it is. Whatever else trains, such as the head, is shared or
    personal as a whole.
    """

    needs_common_start: ClassVar[bool] = False  # whether clients must begin with the same factors
    takes_ranks: ClassVar[bool] = False  # whether clients' ranks may differ

    share: Literal["both", "A", "B", "alternate"] = Option(
        "both",
        "Factors that are averaged: both; A, while B trains and stays personal; B, while A stays as it was at first; "
        "or B in odd rounds and A in even ones, the other one frozen.",
    )
    head: Literal["shared", "personal"] = Option("shared", "Whether all other layers that train are averaged too.")

    def prepare(self) -> None:
        self.factors = factors_of(self.model)
        if not self.factors:
            raise ValueError(
                "the model has no factors of LoRA, which the strategy averages; add [model.adapter] kind = 'lora'"
            )
        self._first = {self.layers.find(each.first) for each in self.factors}
        self._second = {self.layers.find(each.second) for each in self.factors}
        if frozen := (self._first | self._second) & {None}:
            raise ValueError(f"factors of LoRA are frozen ({len(frozen)}); remove them from [model] freeze")
        self._bases = tuple(name for each in self.factors if (name := self.layers.find(each.base)) is not None)

    def shared(self, server_round: int) -> LayerGroup:
        left_out = self._second if self.share == "A" else self._resting(server_round)
        names = [name for name in self.layers.names if name not in left_out and name not in self._bases]
        if self.head == "personal":
            names = [name for name in names if name in self._first | self._second]
        return LayerGroup(f"lora {self.share}", tuple(names))

    def moved(self, server_round: int) -> LayerGroup:
        return LayerGroup("bases", self._bases)

    def local_plan(self, server_round: int) -> LocalPlan:
        resting = self._resting(server_round)
        pattern = "*.lora_A.*" if resting == self._first else "*.lora_B.*"
        return LocalPlan((Phase(f"all - {pattern}" if resting else "all"),))

    def _resting(self, server_round: int) -> set[str | None]:
        """Return the layers that neither train nor travel in a round."""
        if self.share == "B" or (self.share == "alternate" and server_round % 2):
            return self._first
        return self._second if self.share == "alternate" else set()


def check_held(strategy: Lora) -> None:
    """Raise `ValueError` unless the server can change and send the weights below the factors."""
    if any(each.base not in strategy.keys(strategy.layers.names) for each in strategy.factors):
        raise ValueError(
            "it changes the weights of adapted layers, which are frozen; call fedsim.models.adapters.hold_bases_(model)"
            if strategy.buffers == "shared"
            else f"buffers = {strategy.buffers!r} must be 'shared': it changes the weights of adapted layers"
        )


def stacked(each: Factors, updates: Sequence[ClientUpdate]) -> tuple[Tensor, Tensor]:
    """Return factors whose product is the mean of the clients' products, in float64.

    Returns
    -------
    second, first
        The clients' B, each times its client's weight, next to each other, and their A below each other. Where ranks
        differ, a client's product counts as its own scale, alpha / rank, says.
    """
    total = sum(update.num_examples for update in updates)
    seconds, firsts = [], []
    for update in updates:
        rank, weight = each.rank_of(update.client), each.ratio_of(update.client) * update.num_examples / total
        seconds.append(weight * update.shared[each.second][:, :rank].double())
        firsts.append(update.shared[each.first][:rank].double())
    return torch.cat(seconds, 1), torch.cat(firsts)


class FedIt(Lora):
    """Average both factors of LoRA adapters, each by itself: FedIT.

    References
    ----------
    Zhang et al. 2023, Towards building the federated GPT: federated instruction tuning, arXiv 2305.05644.
    """

    share = "both"


class FedSaLora(Lora):
    """Average the first factor A of LoRA adapters; the second one, B, and the head are personal: FedSA-LoRA.

    References
    ----------
    Guo et al. 2025, Selective aggregation for low-rank adaptation in federated learning, arXiv 2410.01463.
    """

    share = "A"
    head = "personal"


class FfaLora(Lora):
    """Train and average the second factor B of LoRA adapters; the first one stays as it was at first: FFA-LoRA.

    References
    ----------
    Sun et al. 2024, Improving LoRA in privacy-preserving federated learning, arXiv 2403.12313.
    """

    share = "B"


class RoLora(Lora):
    """Train and average the factors of LoRA adapters in turn, B in odd rounds and A in even ones: RoLoRA.

    References
    ----------
    Chen et al. 2025, Robust federated finetuning of LLMs via alternating optimization of LoRA, arXiv 2502.01755.
    """

    share = "alternate"
