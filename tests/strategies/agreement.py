"""Checks that two plays of a method agree, however their clients trained."""

from collections.abc import Iterable

from tests.strategies.harness import Play, assert_close


def assert_trains_alike(alone: Play, together: Play, clients: Iterable[int] = ()) -> None:
    """Check that clients in a cohort do what they do one after the other; of some, the personalised models too."""
    clients = tuple(clients)
    for server_round in alone.rounds():
        assert_close(together.round(server_round), alone.strategy.global_model)
        for client in clients:
            assert_close(together.personalised(client), alone.personalised(client))
