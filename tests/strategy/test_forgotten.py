"""What a method keeps elsewhere than in its memory is found, as a resumed run or another client would lack it."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Strategy
from fedsim.strategy.forgotten import check_stateless, forgotten_by
from fedsim.training import Local, Step
from strategies import STRATEGIES


class Assigns(Strategy):
    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        average = super().aggregate(server_round, updates)
        before, self.before = getattr(self, "before", average), average
        return before


class Appends(Strategy):
    rounds: list[int]

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        self.rounds.append(server_round)
        return super().aggregate(server_round, updates)


class Indexes(Strategy):
    seen: dict[int, Any]

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        for update in updates:
            self.seen[update.client] = update
        return super().aggregate(server_round, updates)


class Remembers(Strategy):
    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        average = dict(super().aggregate(server_round, updates))
        self.memory["average"] = average
        self.memory |= {"again": average}
        average.update(average)
        return average


class Saves(Assigns):
    def state(self) -> Params:
        return self.before


class Delegates(Strategy):
    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        self._note(server_round)
        return super().aggregate(server_round, updates)

    def _note(self, server_round: int) -> None:
        self.last = server_round


class Counts(Strategy):
    turn = 0

    def shared(self, server_round: int) -> LayerGroup:
        self.turn = (self.turn + 1) % 2
        return self.layers.group("all")


class Leaves(Strategy):
    def shared(self, server_round: int) -> LayerGroup:
        self.chosen = self.layers.group("all")  # for a later hook of the round
        return self.chosen


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (Assigns, "aggregate changes self.before"),
        (Appends, "aggregate changes self.rounds"),
        (Indexes, "aggregate changes self.seen"),
        (Delegates, "aggregate changes self.last"),
        (Counts, "shared changes self.turn"),
        (Leaves, None),
        (Remembers, None),
        (Saves, None),
    ],
)
def test_attributes_that_hooks_change_for_the_next_round_are_found(
    strategy: type[Strategy], changes: str | None
) -> None:
    expected = changes and f"{strategy.__name__}.{changes}, which no checkpoint has"
    assert forgotten_by(strategy) == expected


class Prepares(ClientRule):
    def prepare(self) -> None:
        self.keys = list(self.parameters)


class Anchors(Prepares):
    def start(self, local: Local) -> Local:
        self.anchor = local.params
        return local


class CountsRounds(Prepares):
    done: dict[int, int]

    def finish(self, local: Local, started: Local) -> Finished:
        self._count(local.client)
        return Finished(local.params)

    def _count(self, client: int) -> None:
        self.done[client] = self.done.get(client, 0) + 1


class Logs(Prepares):
    losses: list[Any]

    def loss(self, step: Step) -> Any:
        self.losses.append(step.number)
        return super().loss(step)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [(Anchors, "start changes self.anchor"), (CountsRounds, "finish changes self.done"), (Logs, "loss changes self.l")],
)
def test_a_rule_that_a_hook_changes_is_refused_as_all_clients_share_it(rule: type[ClientRule], changes: str) -> None:
    with pytest.raises(ValueError, match=f"{rule.__name__}.{changes}.*, and all clients share one rule; let start"):
        check_stateless(rule)
    check_stateless(Prepares)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_of_the_table_keeps_anything_outside_its_memory(name: str) -> None:
    strategy = STRATEGIES[name]
    assert forgotten_by(strategy) is None
    check_stateless(strategy.client_rule)
