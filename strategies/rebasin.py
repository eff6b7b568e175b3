"""The units of the clients' models are put into the same places before they are averaged: re-basin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedsim import seeds
from fedsim.alignment.merging.merging import merge_hierarchically, merge_many
from fedsim.alignment.repair.biases import scale_biases
from fedsim.alignment.repair.repairing import repair as repaired
from fedsim.alignment.repair.repairing import reset_statistics
from fedsim.alignment.repair.sites import traced
from fedsim.alignment.symmetries.permutations import Axis, Permutation, Spec, permute, permute_entry
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params, state_of
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Sets, Strategy

Repair = Literal["none", "reset", "repair", "rescale", "reshift", "biases"]
PERMUTATION, MERGED_IN, TRAINED_IN, ROUND = "permutation", "merged_in", "trained_in", "round"


class Rebasin(Strategy):
    """Average one layer group once the clients' units are in the same places, those of the global model.

    Parameters
    ----------
    shared
        The layer group that is matched and averaged, in the layer language.
    matching
        How units are matched; ``none`` averages them as they are.
    repair
        What is done to the average.

    Raises
    ------
    ValueError
        If there are no inputs, the model cannot be traced, the group cannot be read, or the repair needs more than it.
    """

    def __init__(
        self, model: nn.Module, shared: str, matching: Literal["weights", "none"], repair: Repair, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        self._shared = self.layers.group(shared)
        self._repair: Repair = repair
        self._model = model
        self._spec = None
        if (matching != "none" or repair != "none") and (self.inputs is None or len(self.inputs) < 2):
            raise ValueError(
                f"{type(self).__name__} traces the model and needs inputs for that; pass inputs=, a tensor of two or "
                "more as the model takes them"
            )
        if matching != "none":
            self._spec = self._symmetries()
        self._check_repair()
        self._rule, self._followed = self._rule_and_orders()
        # By client: what its personal layers have to follow since the last merge in which it took part.
        self._moves: dict[int, Sets] = {}

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared

    def client_rule(self) -> ClientRule:
        """Return the rule that moves the units of what a client keeps; there is none if nothing of it could move."""
        return self._rule

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Send the orders in which units of the client's own layers have moved, and in which round that was."""
        return self._moves.get(client, {})

    def permutations(
        self, members: Sequence[Params], weights: Sequence[float], start: Params, rng: np.random.Generator
    ) -> list[Permutation]:
        """Return what brings each member's units to the same places, those of ``start``."""
        raise NotImplementedError

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the mean of the shared layers, weighted by examples, once their units are in the same places."""
        members, weights = [update.shared for update in updates], [update.num_examples for update in updates]
        if self._spec is not None:
            found = self._found(server_round, members, weights)
            for update, permutation in zip(updates, found, strict=True):
                self._remember(server_round, update.client, permutation)
            members = [permute(member, self._spec, each) for member, each in zip(members, found, strict=True)]
        return self._repaired(weighted_mean(members, weights, self.precision), members, weights)

    def state(self) -> Params:
        """Return where the units of the clients' own layers have moved."""
        return {
            f"{client}/{name}/{key}": value
            for client, sets in self._moves.items()
            for name, entries in sets.items()
            for key, value in entries.items()
        }

    def load_state(self, state: Params) -> None:
        """Take where the units of the clients' own layers have moved."""
        moves: dict[int, dict[str, Params]] = {}
        for path, value in state.items():
            client, name, key = path.split("/", 2)
            moves.setdefault(int(client), {}).setdefault(name, {})[key] = value
        self._moves = dict(moves)

    def _found(self, server_round: int, members: Sequence[Params], weights: Sequence[float]) -> list[Permutation]:
        """Return what brings each member's units to the places that they have in the global model from now on."""
        largest = members[max(range(len(members)), key=lambda member: weights[member])]
        # After a restart the global model comes from the disk, and updates perhaps from a GPU.
        known = {key: self.global_model[key].to(value.device) for key, value in largest.items()}
        start = known if self._averaged_in else largest
        return self.permutations(members, weights, start, seeds.rng(self.seed, "matching", server_round))

    def _remember(self, server_round: int, client: int, permutation: Permutation) -> None:
        """Keep for a client those orders that it has to follow: none, if none of its own layers' units have moved."""
        moved = {
            name: permutation[name].to("cpu", torch.int32)
            for name in self._followed
            if not torch.equal(permutation[name].cpu(), torch.arange(len(permutation[name])))
        }
        self._moves.pop(client, None)
        if moved:
            merged_in = {ROUND: torch.tensor(server_round, dtype=torch.int32)}
            self._moves[client] = {PERMUTATION: moved, MERGED_IN: merged_in}

    def _rule_and_orders(self) -> tuple[ClientRule, tuple[str, ...]]:
        """Return what clients do, and the orders that something of what they keep follows."""
        if self._spec is None:
            return ClientRule(), ()
        taken = set(self._keys(self._shared))
        own = {key: axes for key, axes in self._spec.axes.items() if key not in taken and _orders(axes)}
        followed = {name for axes in own.values() for name in _orders(axes)}
        return Following(own) if own else ClientRule(), tuple(sorted(followed))

    def _symmetries(self) -> Spec:
        """Return which units can change places."""
        assert self.inputs is not None
        try:
            return permutation_spec(self._model, self.inputs[:2])
        except ValueError as error:
            raise ValueError(
                f"{error}; use matched_average with matching = 'none' to average units as they are"
            ) from error

    def _check_repair(self) -> None:
        if self._repair == "none":
            return
        if len(self._shared) < len(self.layers) or self.buffers != "shared":
            raise ValueError(
                f"repair = {self._repair!r} needs whole models, and shared = {self._shared.name!r}, buffers = "
                f"{self.buffers!r} keep a part with the clients; use 'all' and 'shared', or repair = 'none'"
            )
        if self._repair == "reset" and not any(layer.kind == "norm" and layer.buffers for layer in self.layers):
            raise ValueError("repair = 'reset' needs running statistics and the model has none; use 'repair' or 'none'")
        if self._repair != "reset":
            assert self.inputs is not None
            try:
                traced(self._model, state_of(self._model), self.inputs)
            except ValueError as error:
                raise ValueError(f"repair = {self._repair!r}: {error} with repair = 'none'") from error

    def _repaired(self, mean: Params, members: Sequence[Params], weights: Sequence[float]) -> Params:
        """Return the members' mean with the moments that they have in the mean."""
        if self._repair == "none":
            return mean
        assert self.inputs is not None
        # Integer entries do not travel.
        merged, *whole = ({**self.global_model, **part} for part in (mean, *members))
        if self._repair == "reset":
            whole_mean = reset_statistics(self._model, merged, self.inputs)
        elif self._repair == "biases":
            whole_mean = scale_biases(self._model, merged, whole, self.inputs, weights=weights)
        else:
            whole_mean = repaired(self._model, merged, whole, self.inputs, weights=weights, kind=self._repair)
        return {key: whole_mean[key] for key in mean}


class MatchedAverage(Rebasin):
    """Average one layer group once the clients' units have been matched by their weights: Git Re-Basin.

    Parameters
    ----------
    shared
        The layer group that is matched and averaged, in the layer language.
    matching
        ``none`` averages units as they are.
    sweeps
        How often all units are matched anew at most.
    repair
        What is done to the average of all layers. ``reset`` computes running statistics anew, on the server's inputs.
        ``repair`` gives each channel the clients' mean and standard deviation on these, ``reshift`` the mean and
        ``rescale`` the standard deviation only. ``biases`` weights biases by depth, without data.

    Raises
    ------
    ValueError
        If there are no inputs, the model cannot be traced, the group cannot be read, or the repair needs more than it.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries, arXiv 2209.04836, algorithm 3;
    repair: Jordan et al. 2023, arXiv 2211.08403; biases: Qu and Horváth 2024, arXiv 2402.05966.

    Notes
    -----
    Each client's units are matched with the mean of the others, and the average's with the global model's, so that a
    client which was absent for some rounds still fits; in the first round with those of the client with the most
    examples. Clients count by their examples, where the paper's models count alike.

    Of a group, only what is shared is matched. A client moves the units of what it keeps to where they have moved in
    what it shares, once for each merge in which it took part; the orders travel as 32-bit integers, and only those that
    change something. Momentum that clients keep (``local.optimizer_state = "keep"``) cannot follow, nor can a client
    that has lost what it had learned since an earlier round.

    For a repair the server measures models on its own inputs, in fedsim a sample of what the clients train on.
    """

    def __init__(
        self,
        model: nn.Module,
        shared: str = "all",
        matching: Literal["weights", "none"] = "weights",
        sweeps: int = 100,
        repair: Repair = "none",
        **settings: Any,
    ) -> None:
        super().__init__(model, shared, matching, repair, **settings)
        if sweeps < 1:
            raise ValueError(f"sweeps = {sweeps} must be at least 1; matching = 'none' matches nothing")
        self._sweeps = sweeps

    def permutations(
        self, members: Sequence[Params], weights: Sequence[float], start: Params, rng: np.random.Generator
    ) -> list[Permutation]:
        """Match each member with the mean of the others, again and again."""
        assert self._spec is not None
        merged = merge_many(self._spec, members, weights=weights, rng=rng, start=start, sweeps=self._sweeps)
        return merged.permutations


class HierarchicalAverage(Rebasin):
    """Average one layer group pair by pair, the units of each pair matched before: hierarchical re-basin.

    Parameters
    ----------
    shared
        The layer group that is matched and averaged, in the layer language.
    order
        Which models make pairs: neighbours among the clients (``given``), the nearest once they are matched
        (``nearest``), or any (``random``).
    repair
        What is done to the average, as in `MatchedAverage`.

    Raises
    ------
    ValueError
        If there are no inputs, the model cannot be traced, the group cannot be read, or the repair needs more than it.

    References
    ----------
    Franke et al. 2025, arXiv 2510.09174.

    Notes
    -----
    The paper merges 2 ** n models of equal weight. Here a pair's sides count by their clients' examples, and an odd one
    goes on to the next stage, so that the average is that of all clients by their examples. The rest is as in
    `MatchedAverage`: the average's units are matched with the global model's, and what clients keep follows.
    """

    def __init__(
        self,
        model: nn.Module,
        shared: str = "all",
        order: Literal["given", "nearest", "random"] = "given",
        repair: Repair = "none",
        **settings: Any,
    ) -> None:
        super().__init__(model, shared, "weights", repair, **settings)
        self._order: Literal["given", "nearest", "random"] = order

    def permutations(
        self, members: Sequence[Params], weights: Sequence[float], start: Params, rng: np.random.Generator
    ) -> list[Permutation]:
        """Match pairs of members, pairs of pairs and so on, and the last average with ``start``."""
        assert self._spec is not None
        merged = merge_hierarchically(self._spec, members, weights=weights, rng=rng, order=self._order, start=start)
        return merged.permutations


@dataclass(frozen=True)
class Following(ClientRule):
    """Moves the units of what a client keeps to where they have moved in what it shares.

    Parameters
    ----------
    own
        The axes of those entries that the client does not take from the server and that follow an order.
    """

    own: Mapping[str, tuple[Axis, ...]]

    def start(self, local: Local) -> Local:
        """Follow the last merge, unless the client has trained since and thereby followed it."""
        sent, trained = local.sets.get(MERGED_IN), local.sets.get(TRAINED_IN)
        if sent is None or trained is None or sent[ROUND] != trained[ROUND]:
            return replace(local, sets={})
        orders = local.sets[PERMUTATION]
        permutation = {name: order.long() for name, order in orders.items()}
        moved = {key: permute_entry(local.params[key], axes, permutation) for key, axes in self.own.items()}
        return replace(local, params=local.params | moved, sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        """Remember the round: its merge is the one that is to be followed next."""
        trained_in = {ROUND: torch.tensor(local.server_round, dtype=torch.int32)}
        return Finished(local.params, kept={TRAINED_IN: trained_in})


def _orders(axes: tuple[Axis, ...]) -> set[str]:
    return {segment.order for axis in axes for segment in axis if segment.order is not None}
