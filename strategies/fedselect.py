"""Each client makes more and more single parameters its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, LocalPlan, Phase, Step, Strategy

MASK, REFERENCE = "personal_mask", "reference"


class FedSelect(Strategy):
    """Keep with each client the single parameters that move most, ever more of them, and average the rest: FedSelect.

    Parameters
    ----------
    every
        Rounds after which each client makes more of its parameters personal.
    growth
        Share of each tensor's parameters that are still shared which become personal then, the paper's p.
    target
        Share of each tensor that is personal in the end, the paper's alpha.
    shared_epochs
        Epochs in which a client trains its shared parameters; before them it trains its personal ones for the
        epochs of ``[local]``.

    Raises
    ------
    ValueError
        If ``every`` or ``shared_epochs`` is not positive, or ``growth`` or ``target`` is not in [0, 1].

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

    partial = True  # a client without personal parameters sends no mask

    def __init__(
        self,
        model: nn.Module,
        every: int = 3,
        growth: float = 0.25,
        target: float = 0.8,
        shared_epochs: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        for name, value in (("every", every), ("shared_epochs", shared_epochs)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        for name, share in (("growth", growth), ("target", target)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} = {share} must be at least 0 and at most 1; 0 is FedAvg")
        parameters = self.layers.keys(self.layers.names, buffers=False)
        self._rule = PersonalParameters(parameters, every, growth, target)
        self._shared_epochs = shared_epochs

    def kept(self, server_round: int) -> LayerGroup:
        """Keep the whole model, in which each client has parameters of its own."""
        return self.layers.group("all")

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train the personal parameters, once a client may have some, and then the shared ones."""
        shared = Phase(epochs=self._shared_epochs, label="shared")
        if server_round <= 1 + self._rule.every or not self._rule.grows:
            return LocalPlan((shared,))
        return LocalPlan((Phase(label="personal"), shared))

    def client_rule(self) -> ClientRule:
        """Return the rule that trains by the mask and lets it grow."""
        return self._rule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average each parameter over the clients that share it."""
        average = super().aggregate(server_round, updates)
        if not any(MASK in update.sets for update in updates):
            return average
        # What is personal came as zero, so the mean over all is that over the sharers times their part of the weight.
        shared = [_shared(update, self._rule.parameters) for update in updates]
        sharers = weighted_mean(shared, [update.num_examples for update in updates])
        for key, part in sharers.items():
            average[key] = torch.where(part > 0, average[key] / part, self.global_model[key].to(part.device))
        return average


@dataclass(frozen=True)
class PersonalParameters(ClientRule):
    """Trains personal and shared parameters in turn, and makes those personal that move most.

    Parameters
    ----------
    parameters
        Keys of the model's parameters; buffers are always shared.
    every, growth, target
        As in `FedSelect`.
    """

    parameters: tuple[str, ...]
    every: int
    growth: float
    target: float
    plain_sgd = True

    @property
    def grows(self) -> bool:
        """Whether any mask ever does."""
        return self.growth > 0 and self.target > 0

    def start(self, local: Local) -> Local:
        """Put the client's personal parameters into what came from the server."""
        own = {key: local.own[key] for key in self.parameters}
        mask = local.sets.get(MASK, {key: torch.zeros_like(value, dtype=torch.bool) for key, value in own.items()})
        params = local.params | {key: torch.where(mask[key], own[key], local.params[key]) for key in own}
        return replace(local, params=params, sets={MASK: mask, REFERENCE: local.sets.get(REFERENCE, own)})

    def gradient(self, step: Step, gradients: Params) -> Params:
        """Leave those of the parameters whose phase it is."""
        mask, personal = step.sets[MASK], step.phase.label == "personal"
        return {key: torch.where(mask[key] == personal, value, 0) for key, value in gradients.items()}

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the mask, grown if it is time, and send what it left shared in this round."""
        mask, reference = local.sets[MASK], local.sets[REFERENCE]
        upload = local.params | {key: local.params[key].masked_fill(mask[key], 0) for key in mask}
        sent = {MASK: mask} if any(bool(value.any()) for value in mask.values()) else {}
        if local.server_round > 1 and (local.server_round - 1) % self.every == 0:
            moved = {key: (local.params[key] - reference[key]).abs() for key in mask}
            mask = {key: self._grown(mask[key], moved[key]) for key in mask}
            reference = {key: local.params[key] for key in mask}
        return Finished(local.params, upload, kept={MASK: mask, REFERENCE: reference}, sent=sent)

    def _grown(self, mask: Tensor, moved: Tensor) -> Tensor:
        """Return a mask with the shared parameters that moved most added to it."""
        personal = int(mask.sum())
        shared = mask.numel() - personal
        # The authors' code cuts the sorted list at the rounded number that stays, so round that one.
        count = min(shared - round((1 - self.growth) * shared), round(self.target * mask.numel()) - personal)
        largest = moved.masked_fill(mask, -1).flatten().topk(max(count, 0)).indices
        return mask.flatten().index_fill(0, largest, True).view_as(mask)


def _shared(update: ClientUpdate, parameters: tuple[str, ...]) -> Params:
    """Return 1 where a client shares a parameter, and 0 where it is personal."""
    if MASK not in update.sets:
        return {key: torch.ones_like(update.shared[key], dtype=torch.float64) for key in parameters}
    return {key: (~update.sets[MASK][key]).double() for key in parameters}
