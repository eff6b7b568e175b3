"""Critical parameters are averaged with those of similar clients only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Sets, Strategy

CRITICAL, CUSTOMISED = "critical", "customised"


class FedCac(Strategy):
    """Average the parameters that matter to a client with those of similar clients, and all others with all: FedCAC.

    Parameters
    ----------
    critical
        Share of each tensor's parameters that matter, the paper's tau: those with the largest change times value.
    beta
        Rounds after which no client is similar enough to another any more.

    Raises
    ------
    ValueError
        If ``critical`` is not in [0, 1] or ``beta`` is not positive.

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

    def __init__(self, model: nn.Module, critical: float = 0.5, beta: int = 100, **settings: Any) -> None:
        super().__init__(model, **settings)
        if not 0 <= critical <= 1:
            raise ValueError(f"critical = {critical} must be at least 0 and at most 1; 0 is FedAvg")
        if beta < 1:
            raise ValueError(f"beta = {beta} must be at least 1")
        self._beta = beta
        self._rule = CriticalParameters(self.layers.keys(self.layers.names, buffers=False), critical)
        self._models: dict[int, Params] = {}
        self._masks: dict[int, Params] = {}
        self._compared_in = 0
        self._similar: dict[int, list[int]] = {}

    def client_rule(self) -> ClientRule:
        """Return the rule that finds the critical parameters and begins with the customised ones."""
        return self._rule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average all, and remember each client's model and what is critical in it."""
        for update in updates:
            if CRITICAL in update.sets:
                self._models[update.client] = {key: update.shared[key] for key in self._rule.parameters}
                self._masks[update.client] = {key: mask.cpu() for key, mask in update.sets[CRITICAL].items()}
        self._compared_in = server_round
        self._similar = _similar(self._masks, server_round / self._beta)
        return super().aggregate(server_round, updates)

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Send a client that has taken part the mean of its last model and those of the clients similar to it."""
        if client not in self._similar:
            return {}
        # What comes from a checkpoint may be on another device than what came since.
        models, device = self._models, next(iter(self._models[client].values())).device
        members = [{key: v.to(device) for key, v in models[other].items()} for other in self._similar[client]]
        return {CUSTOMISED: weighted_mean(members, [1.0] * len(members), self.precision)}

    def state(self) -> Params:
        """Return the last model and mask of each client, and when they were compared."""
        kinds = {"model": self._models, "mask": self._masks}
        memory = {
            f"{kind}/{client}/{key}": value
            for kind, clients in kinds.items()
            for client, entries in clients.items()
            for key, value in entries.items()
        }
        return memory | {"compared_in": torch.tensor(self._compared_in)}

    def load_state(self, state: Params) -> None:
        """Take the memory, and compare the masks again."""
        self._models, self._masks = {}, {}
        for name, value in state.items():
            if name != "compared_in":
                kind, client, key = name.split("/", 2)
                clients = self._models if kind == "model" else self._masks
                clients.setdefault(int(client), {})[key] = value
        self._compared_in = int(state["compared_in"])
        self._similar = _similar(self._masks, self._compared_in / self._beta)


def _similar(masks: dict[int, Params], progress: float) -> dict[int, list[int]]:
    """Return, for each client, itself and those whose masks overlap with its own by at least the threshold."""
    clients = sorted(masks)
    size = {client: sum(int(mask.sum()) for mask in masks[client].values()) for client in clients}
    overlaps: dict[tuple[int, int], float] = {}
    for i in clients:
        for j in clients:
            if i < j:
                differing = sum(int((mask != masks[j][key]).sum()) for key, mask in masks[i].items())
                # An empty mask takes nothing from its customised model.
                overlaps[i, j] = 1 - differing / max(1, 2 * size[i])
                overlaps[j, i] = 1 - differing / max(1, 2 * size[j])
    if not overlaps:
        return {client: [client] for client in clients}
    mean, largest = sum(overlaps.values()) / len(overlaps), max(overlaps.values())
    threshold = mean + progress * (largest - mean)
    return {i: [j for j in clients if i == j or overlaps[i, j] >= threshold] for i in clients}


@dataclass(frozen=True)
class CriticalParameters(ClientRule):
    """Begins with the customised model where a parameter is critical, and says afterwards which ones are.

    Parameters
    ----------
    parameters
        Keys of the model's parameters.
    share
        Of each tensor that is critical.
    """

    parameters: tuple[str, ...]
    share: float

    def start(self, local: Local) -> Local:
        """Take the critical parameters from the customised model, and all others from the average."""
        mask, customised = local.sets.get(CRITICAL), local.sets.get(CUSTOMISED)
        if mask is None or customised is None:  # it has not taken part yet
            return replace(local, sets={})
        mixed = {key: torch.where(mask[key], customised[key], local.params[key]) for key in self.parameters}
        return replace(local, params=local.params | mixed, sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep and send the mask of what is critical now."""
        mask = {key: self._critical(local.params[key], started.params[key]) for key in self.parameters}
        return Finished(local.params, kept={CRITICAL: mask}, sent={CRITICAL: mask})

    def _critical(self, value: Tensor, before: Tensor) -> Tensor:
        sensitivity = ((value - before) * value).abs()
        # A product such as 0.29 * 100 is a little less than its value.
        count = math.floor(self.share * value.numel() + 1e-9)
        if not count:
            return torch.zeros_like(value, dtype=torch.bool)
        threshold = sensitivity.flatten().topk(count).values[-1]
        return (sensitivity >= threshold) & (sensitivity > 0)
