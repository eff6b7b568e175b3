"""The factors of LoRA travel: both, one of them, or one after the other."""

from typing import Literal

from fedsim.models.adapters import factors_of
from fedsim.models.layers import LayerGroup
from fedsim.strategy import LocalPlan, Option, Phase, Strategy


class Lora(Strategy):
    """Average the factors of LoRA adapters, by default both, each by itself: FedIT.

    References
    ----------
    Zhang et al. 2023, Towards building the federated GPT: federated instruction tuning, arXiv 2305.05644.

    Notes
    -----
    The weight of a layer is W + (alpha / rank) B A. The average of both factors by themselves is not that of their
    products; if all clients have the same A, or the same B, it is. Whatever else trains, such as the head, is shared or
    personal as a whole.
    """

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

    def shared(self, server_round: int) -> LayerGroup:
        left_out = self._second if self.share == "A" else self._resting(server_round)
        names = [name for name in self.layers.names if name not in left_out]
        if self.head == "personal":
            names = [name for name in names if name in self._first | self._second]
        return LayerGroup(f"lora {self.share}", tuple(names))

    def local_plan(self, server_round: int) -> LocalPlan:
        resting = self._resting(server_round)
        pattern = "*.lora_A.*" if resting == self._first else "*.lora_B.*"
        return LocalPlan((Phase(f"all - {pattern}" if resting else "all"),))

    def _resting(self, server_round: int) -> set[str | None]:
        """Return the layers that neither train nor travel in a round."""
        if self.share == "B" or (self.share == "alternate" and server_round % 2):
            return self._first
        return self._second if self.share == "alternate" else set()


class FedSaLora(Lora):
    """Average the first factor A of LoRA adapters; the second one, B, is personal: FedSA-LoRA.

    References
    ----------
    Guo et al. 2025, Selective aggregation for low-rank adaptation in federated learning, arXiv 2410.01463.

    Notes
    -----
    In the paper the classifier is personal too: head = "personal".
    """

    share = "A"


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
