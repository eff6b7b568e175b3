"""A generic and a personal head on one body."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Finished, Local, Step, Strategy


class FedRod(Strategy):
    """Average a body and a head that are trained as if classes were balanced; add a personal head: FedRoD.

    Parameters
    ----------
    head
        The linear layer that is the head, in the layer language.
    absent_count
        Examples that a class which a client does not have counts as in its balanced loss, since log 0 is not finite.

    Raises
    ------
    ValueError
        If the head is not a single linear layer of its own, or ``absent_count`` is not positive.

    References
    ----------
    Chen and Chao 2022, On bridging generic and personalized federated learning for image classification,
    arXiv 2107.00778, with linear personal heads.

    Notes
    -----
    Body and generic head descend the balanced softmax loss (Ren et al. 2020, arXiv 2007.10740) of the client's class
    counts. The personal head never leaves the client; it descends the cross-entropy of the sum of both heads' logits,
    on features and generic logits that take no gradient of it, and begins with zeros: untrained it adds nothing. PFLlib
    begins with a copy of the generic head. What is evaluated is the model with the sum of both heads.
    """

    def __init__(self, model: nn.Module, head: str = "head", absent_count: float = 1e-8, **settings: Any) -> None:
        super().__init__(model, **settings)
        group = self.layers.group(head)
        modules = dict(model.named_modules())
        if len(group) != 1 or not isinstance(modules.get(group.layers[0]), nn.Linear):
            found = ", ".join(group) or "nothing"
            raise ValueError(
                f"head = {head!r} is {found}; it must be a single linear layer of its own; name that layer"
            )
        if absent_count <= 0:
            raise ValueError(f"absent_count = {absent_count} must be greater than 0; its logarithm is added to logits")
        self._rule = FedRodRule(group.layers[0], absent_count)

    def client_rule(self) -> ClientRule:
        """Clients keep their personal head."""
        return self._rule


class FedRodRule(ClientRule):
    """Trains the set ``personal_head`` beside the model; ``classes`` holds the client's class counts for itself.

    Parameters
    ----------
    head
        Name of the generic head's module.
    absent_count
        As in `FedRod`.
    """

    trained = ("personal_head",)

    def __init__(self, head: str, absent_count: float) -> None:
        self._head = head
        self._absent_count = absent_count

    def start(self, local: Local) -> Local:
        """Count the classes; begin with zeros in the first round."""
        generic = {key: value for key, value in local.params.items() if key.rpartition(".")[0] == self._head}
        weight = generic[f"{self._head}.weight"]
        counts = torch.bincount(local.targets.flatten(), minlength=len(weight)).to(weight.dtype)
        zeros = {key.rpartition(".")[2]: torch.zeros_like(value) for key, value in generic.items()}
        classes = {"log_counts": counts.clamp(min=self._absent_count).log()}
        return replace(local, sets={"personal_head": zeros, **local.sets, "classes": classes})

    def loss(self, step: Step) -> Tensor:
        """Return the balanced loss of the model, plus the loss of both heads, of which only the personal one learns."""
        logits, features = step.logits_and_features(step.params, self._head)
        log_counts = step.sets["classes"]["log_counts"]
        log_counts = log_counts.view(-1, *[1] * (logits.dim() - 2))  # of sequences, classes are the second dimension
        personal = linear(features.detach(), **step.sets["personal_head"])
        if personal.dim() > 2:
            personal = personal.movedim(-1, 1)
        return step.cross_entropy(logits + log_counts) + step.cross_entropy(logits.detach() + personal)

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the personal head."""
        return Finished(local.params, kept={"personal_head": local.sets["personal_head"]})

    def personalised(self, local: Local) -> Params:
        """Return the model with the sum of both heads in the place of the generic one."""
        personal = {f"{self._head}.{key}": value for key, value in local.sets["personal_head"].items()}
        return local.params | {key: local.params[key] + value for key, value in personal.items()}
