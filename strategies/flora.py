"""The clients' factors are stacked and merged into the weights below them; then new factors are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from fedsim.errors import ClientError
from fedsim.models.adapters import Factors, factors_of
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.models.ranks import cut_to_rank
from fedsim.seeds import rng
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Option, Sets
from strategies.lora import Lora, check_held, stacked

STACK, MADE_IN, TRAINED_IN, ROUND = "stack", "made_in", "trained_in", "round"


class FloraRule(ClientRule):
    """Merges the last round's stack into the weights, and trains new factors."""

    seed: int

    def prepare(self) -> None:
        self.factors = () if self.model is None else factors_of(self.model)

    def start(self, local: Local) -> Local:
        params, sets = dict(local.params), dict(local.sets)
        stack, made, trained = sets.pop(STACK, {}), sets.pop(MADE_IN, {}), sets.pop(TRAINED_IN, {})
        behind = int(made[ROUND]) - int(trained.get(ROUND, 0)) if stack else 0
        if behind > 0:
            raise ClientError(
                f"it has missed a stack: it last trained before round {int(made[ROUND])}, when this one was made"
            )
        # If no round has averaged anything since, the same stack arrives again.
        for each in self.factors if stack and behind == 0 else ():
            product = stack[each.second].double() @ stack[each.first].double()
            params[each.base] = each.merged(params[each.base], product)
        if local.server_round > 1:
            params |= new_factors(self.factors, params, self.seed, local.server_round)
            params = cut_to_rank(self.factors, params, local.client)
        return replace(local, params=params, sets=sets)

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, kept={TRAINED_IN: {ROUND: torch.tensor(local.server_round, dtype=torch.int32)}})


class Flora(Lora):
    """Merge the clients' stacked LoRA factors into the frozen weights, and train new factors in each round: FLoRA.

    References
    ----------
    Wang et al. 2024, FLoRA: federated fine-tuning large language models with heterogeneous low-rank adaptations,
    arXiv 2409.05976.

    Notes
    -----
    The product of the stacks [p_1 B_1, p_2 B_2, ...] and [A_1; A_2; ...] is the sum of p B A. The paper weights A by p,
    the released code weights neither. Clients keep the weights and receive the stacks; a client that has missed a round
    receives the weights instead. In each round all clients draw the same A from the run's seed.
    """

    holds_bases = True
    needs_common_start = True  # of the weights below the factors too
    takes_ranks = True
    client_rule = FloraRule

    share: Literal["both"] = Option("both", "Factors that are averaged: both, which are stacked.")

    def prepare(self) -> None:
        super().prepare()
        check_held(self)
        self._planned_stack = 0, 0  # the round that a stack is of, and its bytes

    def kept(self, server_round: int) -> LayerGroup:
        # Clients merge the stacks into their own weights.
        return LayerGroup("kept", (*super().kept(server_round), *self._bases))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged = self.average(updates)
        self.memory |= {STACK: {}, MADE_IN: {ROUND: torch.tensor(server_round, dtype=torch.int32)}}
        for each in self.factors:
            weight = self.global_model[each.base]
            second, first = (value.to(weight.dtype) for value in stacked(each, updates))
            averaged[each.base] = each.merged(weight, second.double() @ first.double())
            self.memory[STACK] |= {each.second: second, each.first: first}
        return averaged | new_factors(self.factors, averaged, self.seed, server_round + 1)

    def for_client(self, server_round: int, client: int) -> Params:
        skipped = {key for each in self.factors for key in (each.first, each.second)}
        skipped |= {each.base for each in self.factors if self._is_current(client)}
        return {key: value for key, value in super().for_client(server_round, client).items() if key not in skipped}

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {name: self.memory[name] for name in (STACK, MADE_IN)} if self._is_current(client) else {}

    def planned_layers(self, server_round: int, client: int) -> Sequence[str]:
        skipped = {*self._first, *self._second, *(self._bases if self._is_current(client) else ())}
        return [name for name in super().planned_layers(server_round, client) if name not in skipped]

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        if not self._is_current(client):
            return {}
        made_in, size = self._planned_stack
        if made_in != (last := self.exchange.last_round_of(client)):  # the same for all clients that get it
            self._planned_stack = last, (size := self._stack_bytes(self.drawn(last)))
        return {STACK: (0, size), MADE_IN: (0, torch.int32.itemsize)}

    def _stack_bytes(self, clients: Sequence[int]) -> int:
        """Return the bytes of a stack of these clients' factors."""
        size = 0
        for each in self.factors:
            first, second = self.global_model[each.first], self.global_model[each.second]
            rank = sum(each.rank_of(client) or 0 for client in clients) if each.ranks else len(first) * len(clients)
            size += rank * (first.shape[1] + len(second)) * self.global_model[each.base].itemsize
        return size

    def _is_current(self, client: int) -> bool:
        """Return whether a client has the weights that the last stack is to be merged into."""
        last = self.exchange.last_round_of(client)
        return last > 0 and all(self.exchange.averaged_in.get(name) == last for name in self._bases)


def new_factors(factors: Sequence[Factors], like: Params, seed: int, server_round: int) -> Params:
    """Return the factors with which training starts in a round: A as peft draws it, and B all zeros."""
    found: Params = {}
    for each in factors:
        bound = like[each.first].shape[1] ** -0.5
        drawn = rng(seed, "factors", server_round, each.path).uniform(-bound, bound, like[each.first].shape)
        found[each.first] = torch.from_numpy(drawn).to(like[each.first])
        found[each.second] = torch.zeros_like(like[each.second])
    return found
