"""Each client makes more and more single parameters its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.models.averaging import mean_of_sent
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    Count,
    Finished,
    Local,
    LocalPlan,
    Option,
    Phase,
    Share,
    Step,
    Strategy,
)

MASK, REFERENCE = "personal_mask", "reference"


class PersonalParameters(ClientRule):
    """Trains personal and shared parameters in turn, and makes those personal that move most."""

    plain_sgd = True
    every: int
    growth: float
    target: float

    def start(self, local: Local) -> Local:
        own = {key: local.own[key] for key in self.parameters}
        mask = local.sets.get(MASK, {key: torch.zeros_like(value, dtype=torch.bool) for key, value in own.items()})
        params = local.params | {key: torch.where(mask[key], own[key], local.params[key]) for key in own}
        return replace(local, params=params, sets={MASK: mask, REFERENCE: local.sets.get(REFERENCE, own)})

    def gradient(self, step: Step, gradients: Params) -> Params:
        mask, personal = step.sets[MASK], step.phase.label == "personal"
        return {key: torch.where(mask[key] == personal, value, 0) for key, value in gradients.items()}

    def finish(self, local: Local, started: Local) -> Finished:
        mask, reference = local.sets[MASK], local.sets[REFERENCE]
        upload = local.params | {key: local.params[key].masked_fill(mask[key], 0) for key in mask}
        sent = {MASK: mask} if any(bool(value.any()) for value in mask.values()) else {}
        if local.server_round > 1 and (local.server_round - 1) % self.every == 0:
            moved = {key: (local.params[key] - reference[key]).abs() for key in mask}
            mask = {key: self._grown(mask[key], moved[key]) for key in mask}
            reference = {key: local.params[key] for key in mask}
        kept = {MASK: mask, REFERENCE: reference}
        return Finished(local.params, upload, kept=kept, sent=sent, unsent=sent.get(MASK, {}))

    def _grown(self, mask: Tensor, moved: Tensor) -> Tensor:
        """Return a mask with the shared parameters that moved most added to it."""
        personal = int(mask.sum())
        shared = mask.numel() - personal
        # The authors' code cuts the sorted list at the rounded number that stays, so round that one.
        count = min(shared - round((1 - self.growth) * shared), round(self.target * mask.numel()) - personal)
        largest = moved.masked_fill(mask, -1).flatten().topk(max(count, 0)).indices
        return mask.flatten().index_fill(0, largest, True).view_as(mask)


class FedSelect(Strategy):
    """Keep a growing share of each client's parameters, those that move most, and average the rest: FedSelect.

    References
    ----------
    Tamirisa et al. 2024, FedSelect, arXiv 2404.02478.

    Notes
    -----
    As in the authors' code, each tensor is ranked by itself, by how far the client's parameters are from where they
    were when its mask last grew (at first, from the initial model), in rounds 1 + ``every``, 1 + 2 ``every``, and so
    on, and the new mask is used from the next round on. Differences from that code: biases become personal too; the
    target is met exactly; what has just become personal keeps the client's value rather than taking the average once
    more; and the average is weighted by examples, which are equally many there. A parameter that no participant shares
    keeps its global value. Personal parameters travel as zeros, and the mask with them. Frozen parameters would move by
    momentum or weight decay, so the method is plain SGD.
    """

    client_rule = PersonalParameters
    partial = True  # a client without personal parameters sends no mask
    every: Count = Option(3, "Rounds after which each client makes more of its parameters personal.")
    growth: Share = Option(0.25, "Share of each tensor's shared parameters that become personal then, the paper's p.")
    target: Share = Option(0.8, "Share of each tensor that ends up personal, the paper's alpha; 0 is FedAvg.")
    shared_epochs: Count = Option(1, "Epochs of the shared parameters; before them, local.epochs of the personal ones.")

    def prepare(self) -> None:
        self._grown = 0, frozenset[int]()  # before which round, and whose masks

    def kept(self, server_round: int) -> LayerGroup:
        return self.layers.group("all")  # each client has its own parameters in it

    def local_plan(self, server_round: int) -> LocalPlan:
        shared = Phase(epochs=self.shared_epochs, label="shared")
        # No mask has grown before.
        if server_round <= 1 + self.every or not (self.growth and self.target):
            return LocalPlan((shared,))
        return LocalPlan((Phase(label="personal"), shared))

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        sizes = [self.global_model[key].numel() for key in self.parameters]
        grows = any(min(n - round((1 - self.growth) * n), round(self.target * n)) for n in sizes)
        # A mask has a byte for each entry.
        return {MASK: (sum(sizes), 0)} if grows and client in self._grown_before(server_round) else {}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        average = self.average(updates)
        if not any(MASK in update.sets for update in updates):
            return average
        shared = [self._shared_by(update) for update in updates]
        return mean_of_sent(average, shared, [update.num_examples for update in updates], self.global_model)

    def _grown_before(self, server_round: int) -> frozenset[int]:
        """Return the clients whose masks have grown by a round; those of the last round that was asked for are kept."""
        last, grown = self._grown if self._grown[0] <= server_round else (0, frozenset[int]())
        if last < server_round:
            later = (each for each in range(1 + self.every, server_round, self.every) if each >= last)
            self._grown = server_round, grown.union(*map(self.drawn, later))
        return self._grown[1]

    def _shared_by(self, update: ClientUpdate) -> Params:
        """Return 1 where a client shares a parameter, and 0 where it is personal."""
        if MASK not in update.sets:
            return {key: torch.ones_like(update.shared[key], dtype=torch.float64) for key in self.parameters}
        return {key: (~update.sets[MASK][key]).double() for key in self.parameters}
