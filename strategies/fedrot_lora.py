"""Clients rotate their factors into a common frame before they are averaged."""

from typing import Literal

from fedsim.alignment.frames import rotation_of
from fedsim.models.adapters import factors_of
from fedsim.strategy import ClientRule, Finished, Local, Option, Share
from strategies.lora import Lora


class FedRotLoraRule(ClientRule):
    """Sends factors that are rotated toward those that the client received; their product does not change."""

    strength: float

    def prepare(self) -> None:
        self.factors = () if self.model is None else factors_of(self.model)

    def finish(self, local: Local, started: Local) -> Finished:
        if local.server_round == 1 or not self.strength:  # all B were 0, and A is the same for all
            return Finished(local.params)
        upload = dict(local.params)
        for each in self.factors:
            first, second = local.params[each.first].double(), local.params[each.second].double()
            if local.server_round % 2:
                rotation = rotation_of(first @ started.params[each.first].double().T, self.strength)
            else:
                rotation = rotation_of(second.T @ started.params[each.second].double(), self.strength)
            upload[each.first] = (rotation.T @ first).to(upload[each.first].dtype)
            upload[each.second] = (second @ rotation).to(upload[each.second].dtype)
        return Finished(local.params, upload)


class FedRotLora(Lora):
    """Average both factors of LoRA adapters, which clients first rotate into a common frame: FedRot-LoRA.

    References
    ----------
    Zhang, Kim, Cha and Vikalo 2026, FedRot-LoRA: mitigating rotational misalignment in federated LoRA,
    arXiv 2602.23638.

    Notes
    -----
    The rotation R takes R' A closest to the A that the client received in odd rounds, and B R to its B in even ones; in
    the first round there is none. A strength of 0 is FedIT.
    """

    client_rule = FedRotLoraRule
    needs_common_start = True

    share: Literal["both"] = Option("both", "Factors that are averaged: both, which are rotated together.")
    strength: Share = Option(0.5, "How far from no rotation (0) to the whole one (1) clients go.")
