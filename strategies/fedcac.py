"""Critical parameters are averaged with those of similar clients only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Count, Finished, Local, Option, Sets, Share, Strategy

CRITICAL, CUSTOMISED = "critical", "customised"


class CriticalParameters(ClientRule):
    """Begins with the customised model where a parameter is critical, and says afterwards which ones are."""

    critical: float

    def start(self, local: Local) -> Local:
        mask, customised = local.sets.get(CRITICAL), local.sets.get(CUSTOMISED)
        if mask is None or customised is None:  # it has not taken part yet
            return replace(local, sets={})
        mixed = {key: torch.where(mask[key], customised[key], local.params[key]) for key in self.parameters}
        return replace(local, params=local.params | mixed, sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        mask = {key: self._critical(local.params[key], started.params[key]) for key in self.parameters}
        return Finished(local.params, kept={CRITICAL: mask}, sent={CRITICAL: mask})

    def _critical(self, value: Tensor, before: Tensor) -> Tensor:
        sensitivity = ((value - before) * value).abs()
        # A product such as 0.29 * 100 is a little less than its value.
        count = math.floor(self.critical * value.numel() + 1e-9)
        if not count:
            return torch.zeros_like(value, dtype=torch.bool)
        threshold = sensitivity.flatten().topk(count).values[-1]
        return (sensitivity >= threshold) & (sensitivity > 0)


class FedCac(Strategy):
    """Average the parameters that matter to a client with those of similar clients, and all others with all: FedCAC.

    References
    ----------
    Wu et al. 2023, Bold but cautious: unlocking the potential of personalized federated learning through cautiously
    aggressive collaboration, arXiv 2309.11103.

    Notes
    -----
    The server keeps each client's last model and mask, and compares all that it has, also of clients that are absent in
    a round. Each participant gets two models: the average of all participants, weighted by examples, and its customised
    one, an unweighted mean. The threshold of similarity after round t is that of t / ``beta``; PFLlib's is one round
    further. A parameter that did not change is never critical: where fewer than the share
    changed, the mask is smaller. Running statistics are those of the average of all.
    """

    client_rule = CriticalParameters
    critical: Share = Option(0.5, "Share of each tensor that matters, by change times value, the paper's tau.")
    beta: Count = Option(100, "Rounds after which no client is similar enough to another any more.")

    def prepare(self) -> None:
        self._similar: tuple[int, dict[str, list[str]]] = (0, {})

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        for update in updates:
            if CRITICAL in update.sets:
                client, model = str(update.client), {key: update.shared[key] for key in self.parameters}
                self.memory.setdefault("model", {})[client] = model
                self.memory.setdefault("mask", {})[client] = dict(update.sets[CRITICAL])
        self.memory["compared_in"] = torch.tensor(server_round)
        return self.average(updates)

    def sets_for(self, server_round: int, client: int) -> Sets:
        if str(client) not in self.memory.get("model", {}):
            return {}
        return {CUSTOMISED: self.mixture(self.memory["model"], dict.fromkeys(self.similar()[str(client)], 1.0))}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        values = [self.global_model[key] for key in self.parameters]
        customised = sum(value.nbytes for value in values) if self.exchange.last_round_of(client) else 0
        masks = sum(value.numel() for value in values)  # a byte for each entry
        return {CRITICAL: (masks, 0), CUSTOMISED: (0, customised)}

    def similar(self) -> dict[str, list[str]]:
        """Return, for each client, itself and those whose masks overlap with its own by at least the threshold."""
        compared_in = int(self.memory["compared_in"])
        if self._similar[0] != compared_in:  # each client asks for it
            self._similar = compared_in, _similar(self.memory["mask"], compared_in / self.beta)
        return self._similar[1]


def _similar(masks: Mapping[str, Params], progress: float) -> dict[str, list[str]]:
    clients = sorted(masks, key=int)
    size = {client: sum(int(mask.sum()) for mask in masks[client].values()) for client in clients}
    overlaps: dict[tuple[str, str], float] = {}
    for i in clients:
        for j in clients:
            if int(i) < int(j):
                differing = sum(int((mask != masks[j][key]).sum()) for key, mask in masks[i].items())
                # An empty mask takes nothing from its customised model.
                overlaps[i, j] = 1 - differing / max(1, 2 * size[i])
                overlaps[j, i] = 1 - differing / max(1, 2 * size[j])
    if not overlaps:
        return {client: [client] for client in clients}
    mean, largest = sum(overlaps.values()) / len(overlaps), max(overlaps.values())
    threshold = mean + progress * (largest - mean)
    return {i: [j for j in clients if i == j or overlaps[i, j] >= threshold] for i in clients}
