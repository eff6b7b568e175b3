"""Checks that two plays of a method agree, however their clients trained."""

from collections.abc import Iterable
from pathlib import Path

from tests.strategies.harness import Play, assert_close


def assert_trains_alike(alone: Play, together: Play, clients: Iterable[int] = ()) -> None:
    """Check that clients in a cohort do what they do one after the other; of some, the personalised models too."""
    clients = tuple(clients)
    for server_round in alone.rounds():
        assert_close(together.round(server_round), alone.strategy.global_model)
        for client in clients:
            assert_close(together.personalised(client), alone.personalised(client))


def assert_resumes(whole: Play, resumed: Play, folder: Path, after: int = 2) -> None:
    """Check that a play which continues from a checkpoint has the bits of one that never stopped."""
    for server_round in range(1, after + 1):
        whole.round(server_round)
    whole.save(folder)
    resumed.load(folder, after)
    assert_close(resumed.round(after + 1), whole.round(after + 1), 0)
    assert_close(resumed.strategy.state(), whole.strategy.state(), 0)
