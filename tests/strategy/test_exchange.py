"""What a client takes follows from when it last took part and what was averaged since."""

import numpy as np
import pytest
import torch

from fedsim.seeds import rng
from fedsim.strategy.exchange import Exchange

LAYERS = ("conv", "norm", "head")


def test_before_anything_is_averaged_there_is_nothing_to_take() -> None:
    exchange = Exchange(LAYERS)
    assert exchange.taken_by(0) == ()
    assert exchange.last_round_of(7) == 0


def test_who_never_took_part_takes_all_that_was_ever_averaged() -> None:
    exchange = Exchange(LAYERS)
    exchange.note(1, ["head"], [0])
    exchange.note(2, ["conv"], [0])
    assert exchange.taken_by(1) == ("conv", "head")
    assert exchange.taken_by(5) == ("conv", "head")


def test_what_was_averaged_in_the_round_of_the_last_update_is_taken_and_what_was_before_is_not() -> None:
    exchange = Exchange(LAYERS)
    exchange.note(1, ["norm"], [0, 2])
    exchange.note(3, ["head"], [2])
    assert exchange.taken_by(2) == ("head",)
    assert exchange.taken_by(0) == ("norm", "head")


def test_a_round_without_participants_or_layers_changes_nothing_else() -> None:
    exchange = Exchange(LAYERS)
    exchange.note(1, ["norm"], [1])
    exchange.note(2, [], [0])
    exchange.note(3, ["conv"], [])
    assert exchange.last_round == {0: 2, 1: 1}
    assert exchange.averaged_in == {"norm": 1, "conv": 3}


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_a_history_that_is_searched(seed: int) -> None:
    stream = rng(seed, "exchange")
    exchange = Exchange(LAYERS)
    history: list[tuple[set[str], set[int]]] = []
    for server_round in range(1, 12):
        averaged = {name for name in LAYERS if stream.random() < 0.4}
        clients = np.flatnonzero(stream.random(6) < 0.3).tolist()
        exchange.note(server_round, averaged, clients)
        history.append((averaged, set(clients)))
        for client in range(7):
            last = max((r for r, (_, took_part) in enumerate(history) if client in took_part), default=0)
            fresh = set().union(*(names for names, _ in history[last:]))
            assert exchange.taken_by(client) == tuple(name for name in LAYERS if name in fresh)


@pytest.mark.parametrize("clients", [[], [0, 1, 3], [999_999], [5, 70, 500_000]])
def test_what_is_saved_of_an_exchange_grows_with_the_clients_that_took_part(clients: list[int]) -> None:
    exchange, again = Exchange(["a", "b"]), Exchange(["a", "b"])
    exchange.note(4, ["b"], clients[:-1])
    exchange.note(7, ["a"], clients[-1:])
    saved = exchange.progress()
    again.load_progress(saved)
    assert (again.averaged_in, again.last_round) == (exchange.averaged_in, exchange.last_round)
    assert sum(value.numel() for value in saved.values()) <= 2 + 2 * len(clients)


def test_what_an_earlier_version_saved_has_an_entry_for_each_client() -> None:
    exchange = Exchange(["a"])
    exchange.load_progress({"averaged_in": torch.tensor([-1]), "last_round": torch.tensor([0, 3, 0, 0, 0, 0, 2])})
    assert exchange.last_round == {1: 3, 6: 2}
    assert exchange.averaged_in == {}
