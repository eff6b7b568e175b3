"""Which worker each client is on, when workers leave and join."""

from collections import Counter

import pytest

from fedsim.federation.engines.homes import Homes


@pytest.mark.parametrize("clients", [6, 7, 1000, 100_000])
def test_clients_stay_where_they_are_and_are_shared_out_evenly(clients: int) -> None:
    alive = ["a", "b", "c"]
    homes = Homes(alive, clients)
    where = [homes.of(client) for client in range(clients)]
    assert where == [alive[client % 3] for client in range(clients)]
    for change, name in (("join", "d"), ("leave", "b"), ("leave", "a"), ("join", "e")):
        before, where = where, list[str]()
        if change == "join":
            alive.append(name)
            homes.join(name)
        else:
            alive.remove(name)
            homes.leave(name, alive)
        where = [homes.of(client) for client in range(clients)]
        counts = Counter(where)
        assert set(counts) == set(alive)
        assert max(counts.values()) - min(counts.values()) <= 1 + clients // 200
        for old, new in zip(before, where, strict=True):
            assert old == new or name in (old, new)
