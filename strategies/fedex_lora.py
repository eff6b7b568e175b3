"""Factors are averaged, and what their averages lose of the mean product goes into the weight below them."""

from collections.abc import Sequence
from typing import Literal

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Option
from strategies.lora import Lora, check_held, stacked


class FedExLora(Lora):
    """Average both factors of LoRA adapters, and add to the frozen weight what their average lacks: FedEx-LoRA.

    References
    ----------
    Singhal, Ponkshe and Vepakomma 2025, FedEx-LoRA: exact aggregation for federated and efficient fine-tuning of
    foundation models, arXiv 2410.09432.

    Notes
    -----
    W moves by (alpha / rank) (sum p B A - B' A') for the averages B' and A', so that W + (alpha / rank) B' A' is the
    mean of the clients' weights. Clients take W in each round, as many bytes as what it has moved by. The released code
    has no weights p, and transposes for GPT-2's layers in all models.
    """

    holds_bases = True
    needs_common_start = True  # of the weights below the factors too

    share: Literal["both"] = Option(
        "both", "Factors that are averaged: both, as the weight takes what the averages of both lack."
    )

    def prepare(self) -> None:
        super().prepare()
        check_held(self)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged = self.average(updates)
        for each in self.factors:
            second, first = stacked(each, updates)
            lacking = second @ first - averaged[each.second].double() @ averaged[each.first].double()
            averaged[each.base] = each.merged(self.global_model[each.base], lacking)
        return averaged
