"""The units of the clients' models are put into the same places before they are averaged: re-basin."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.alignment import Merged, Permutation, merge_c2m3, merge_hierarchically, merge_many, normal_form, permute
from fedsim.alignment.following import follow, to_follow
from fedsim.alignment.matched import Symmetries, spec_of
from fedsim.alignment.merging.arrived import matched_parts
from fedsim.alignment.repair.mean import BY_WEIGHTS, Repair, check_repair, repaired_mean
from fedsim.alignment.symmetries.permutations import Axis, orders_of, without_units_of
from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Count, Finished, Local, Option, Sets, Strategy

PERMUTATION, MERGED_IN, TRAINED_IN, ROUND = "permutation", "merged_in", "trained_in", "round"


class Following(ClientRule):
    """Moves the units of what a client keeps to where they have moved in what it shares."""

    shared: str
    buffers: str
    matching: str = "weights"
    symmetries: Symmetries = "permutations"

    def prepare(self) -> None:
        self.spec, self.own = None, dict[str, tuple[Axis, ...]]()
        if self.matching != "none":
            assert self.model is not None
            assert self.inputs is not None
            # The global model has its own buffers, such as positions, which no merge moves.
            others = [key for layer in self.layers for key in layer.others]
            self.spec = without_units_of(spec_of(self.model, self.symmetries, self.inputs, self.matching), others)
            taken = self.layers.keys(self.layers.group(self.shared), buffers=self.buffers == "shared")
            self.own = {key: axes for key, axes in self.spec.axes.items() if key not in taken and orders_of(axes)}
        self.followed = sorted({name for axes in self.own.values() for name in orders_of(axes)})

    def start(self, local: Local) -> Local:
        # Follow the last merge, unless the client has trained since and thereby followed it.
        sent, trained = local.sets.get(MERGED_IN), local.sets.get(TRAINED_IN)
        if sent is None or trained is None or sent[ROUND] != trained[ROUND]:
            return replace(local, sets={})
        return replace(local, params=local.params | follow(local.params, self.own, local.sets[PERMUTATION]), sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        params = local.params if self.spec is None else normal_form(local.params, self.spec)
        return Finished(params, kept={TRAINED_IN: {ROUND: torch.tensor(local.server_round, dtype=torch.int32)}})


class Rebasin(Strategy, shared="all"):
    """Average one layer group once the clients' units are in the same places, those of the global model.

    Of a group, only what is shared is matched, and units of buffers that are no statistics stay in place. A client
    moves the units of what it keeps to where they have moved in what it shares, once for each merge in which it took
    part; the orders travel as 32-bit integers, and only those that change something. Momentum that clients keep
    (``local.optimizer_state = "keep"``) cannot follow, nor can a client that has lost what it had learned since an
    earlier round. Repairs but ``variance`` measure models on the server's inputs, in fedsim a sample of what the
    clients train on.
    """

    client_rule = Following
    matching = "weights"
    symmetries: Symmetries = Option(
        "permutations",
        "Units change places, rotate in heads (head-rotations), in the stream too, or by any matrix (invertible).",
    )
    repair: Repair = Option("none", "What is done to the average of all layers: see fedsim.alignment.repair.mean.")

    def prepare(self) -> None:
        if self.matching == "none" and self.repair in BY_WEIGHTS:
            self.spec, self.followed = None, list[str]()
            return
        if self.inputs is None or len(self.inputs) < 2:
            raise ValueError(
                f"{type(self).__name__} traces the model on inputs; pass inputs=, two or more as the model takes them"
            )
        chosen = {"matching": self.matching, "symmetries": self.symmetries}
        rule = Following(self.model, self.inputs, shared=self.group.name, buffers=self.buffers, **chosen)
        self.spec, self.followed = rule.spec, rule.followed
        self.unplanned = "the orders of units that have moved, which clients follow" if self.followed else ""
        if self.repair not in BY_WEIGHTS and (len(self.group) < len(self.layers) or self.buffers != "shared"):
            raise ValueError(
                f"repair = {self.repair!r} needs whole models, and shared = {self.group.name!r}, buffers = "
                f"{self.buffers!r} keep a part with the clients; use 'all' and 'shared', or repair = 'none'"
            )
        check_repair(self.repair, self.model, self.inputs)

    @classmethod
    def make_rule(cls, model: nn.Module, inputs: Tensor | None = None, **options: Any) -> ClientRule:
        rule = super().make_rule(model, inputs, **options)
        needed = isinstance(rule, Following) and (rule.own or (rule.spec and (rule.spec.norms or rule.spec.factors)))
        return rule if needed else ClientRule(model)

    def merge(self) -> Callable[..., Merged]:
        """Return the function that brings the members' units to the places of ``start``."""
        raise NotImplementedError

    def sets_for(self, server_round: int, client: int) -> Sets:
        return self.memory.get(str(client), {})

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        members, weights = [update.shared for update in updates], [update.num_examples for update in updates]
        if self.spec is not None:
            start = {key: self.global_model[key] for key in members[0]} if self.exchange.averaged_in else None
            rng = seeds.rng(self.seed, "matching", server_round)
            members, found = matched_parts(self.spec, members, weights, start, self.merge(), rng)
            for update, permutation in zip(updates, found, strict=True):
                self._remember(server_round, update.client, permutation)
            members = [permute(member, self.spec, each) for member, each in zip(members, found, strict=True)]
        mean = weighted_mean(members, weights, self.dtype)
        if self.repair == "none":
            return mean
        # Integer entries do not travel.
        merged, *whole = ({**self.global_model, **part} for part in (mean, *members))
        repaired = repaired_mean(self.repair, self.model, merged, whole, weights, self.inputs)
        return {key: repaired[key] for key in mean}

    def _remember(self, server_round: int, client: int, permutation: Permutation) -> None:
        """Keep for a client those orders that it has to follow: none, if none of its own layers' units have moved."""
        self.memory.pop(str(client), None)
        if moved := to_follow(permutation, self.followed, self.dtype):
            self.memory[str(client)] = {PERMUTATION: moved, MERGED_IN: {ROUND: torch.tensor(server_round).int()}}


class MatchedAverage(Rebasin):
    """Average one layer group once the clients' units have been matched by their weights: Git Re-Basin.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries, arXiv 2209.04836, algorithm 3;
    c2m3: arXiv 2405.17897; repair: arXiv 2211.08403; biases: arXiv 2402.05966; variance: arXiv 2404.04616.

    Notes
    -----
    Each client's units are matched with the mean of the others, and the average's with the global model's (at first
    those of the client with the most examples), so that a client which was absent for some rounds still fits. Clients
    count by their examples, where the paper's models count alike, as they do in matching by c2m3.
    """

    matching: Literal["weights", "c2m3", "none"] = Option("weights", "Matching with the mean, at once (c2m3), or none.")
    sweeps: Count | None = Option(None, "Times that all units are matched at most (default: 100, by c2m3 200).")

    def prepare(self) -> None:
        if self.matching == "none" and (self.sweeps or self.symmetries != "permutations"):
            raise ValueError("matching = 'none' moves no units; leave out sweeps and symmetries, or use 'weights'")
        super().prepare()

    def merge(self) -> Callable[..., Merged]:
        if self.matching == "c2m3":
            return partial(merge_c2m3, steps=self.sweeps or 200)
        return partial(merge_many, sweeps=self.sweeps or 100)


class HierarchicalAverage(Rebasin):
    """Average one layer group pair by pair, the units of each pair matched before: hierarchical re-basin.

    References
    ----------
    Franke et al. 2025, arXiv 2510.09174.

    Notes
    -----
    The paper merges 2 ** n models of equal weight. Here a pair's sides count by their clients' examples, and an odd one
    moves on, so that the average is that of all clients by their examples. The rest is as in `MatchedAverage`.
    """

    order: Literal["given", "nearest", "random"] = Option(
        "given", "Which models make pairs: neighbours among the clients, the nearest once they are matched, or any."
    )

    def merge(self) -> Callable[..., Merged]:
        return partial(merge_hierarchically, order=self.order)
