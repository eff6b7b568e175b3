"""What a strategy keeps elsewhere than in its memory is found, as a resumed run would lack it."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy
from fedsim.strategy.forgotten import forgotten_by
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


@pytest.mark.parametrize(
    ("strategy", "name"),
    [(Assigns, "before"), (Appends, "rounds"), (Indexes, "seen"), (Remembers, None), (Saves, None)],
)
def test_attributes_that_aggregate_changes_are_found(strategy: type[Strategy], name: str | None) -> None:
    assert forgotten_by(strategy) == name


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_of_the_table_keeps_anything_outside_its_memory(name: str) -> None:
    strategy = STRATEGIES[name]
    assert forgotten_by(strategy) is None
