"""The bytes that a run would send."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.config import Config
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants
from fedsim.models.adapters import factors_of
from fedsim.models.layers import LayerGroup
from fedsim.strategy import Strategy
from fedsim.strategy.exchange import Exchange
from fedsim.strategy.traffic import layers_of_factors, upload_bytes

# Number of updates that are counted, about; of longer runs, those of the first rounds.
COUNTED = 40_000


@dataclass(frozen=True)
class PlannedTraffic:
    """Bytes of all rounds: of layers, and of the parameter sets that the method plans in addition.

    Parameters
    ----------
    counted
        Number of rounds that are counted; all have as many bytes on average.
    groups
        What each of these shares.
    sizes
        Bytes by layer, as a client sends it.
    sets
        Bytes that a client sends and gets by parameter set, in each of these rounds: all that differ between clients.
    """

    up: int
    down: int
    counted: int
    groups: Sequence[LayerGroup]
    sizes: dict[str, int]
    sets: Sequence[Sequence[Mapping[str, tuple[int, int]]]]


def counted_rounds(config: Config) -> int:
    """Return the number of rounds that are looked at one by one."""
    return min(config.rounds, max(1, COUNTED // len(participants(config, 1))))


def planned_traffic(federation: Federation, strategy: Strategy) -> PlannedTraffic:
    """Count the bytes of all rounds, by the rule that a client takes what was averaged since it last took part.

    Clients that would fail are not foreseen, and what follows from training is as in the first round.
    """
    config, counted = federation.config, counted_rounds(federation.config)
    strategy = _at_the_start(strategy, federation)
    sent = upload_bytes(strategy, federation.initial)
    factors = layers_of_factors(federation.layers, factors_of(strategy.model))
    groups, planned, up, down = [], [], 0, 0

    def bytes_of(name: str, client: int, whole: int) -> int:
        return factors[name].bytes_of(client, whole) if name in factors else whole

    for server_round in range(1, counted + 1):
        group = strategy.shared(server_round)
        training, taken = participants(config, server_round), _Taken(strategy, server_round)
        sets = [
            {name: both for name, both in strategy.planned_sets(server_round, client).items() if any(both)}
            for client in training
        ]
        for client, own in zip(training, sets, strict=True):
            shared = strategy.shared_by(server_round, client)
            up += sum(bytes_of(name, client, sent[name]) for name in shared) + sum(each for each, _ in own.values())
            layers = taken.sizes(client).items()
            down += sum(bytes_of(name, client, size) for name, size in layers) + sum(each for _, each in own.values())
        strategy.exchange.note(server_round, (*group, *strategy.moved(server_round)), training)
        groups.append(group)
        planned.append([own for place, own in enumerate(sets) if own not in sets[:place]])
    up, down = (each * config.rounds // counted for each in (up, down))
    return PlannedTraffic(up, down, counted, groups, dict(sent), planned)


class _Taken:
    """What clients take from the server in a round, bytes by layer; those that last trained together take the same."""

    def __init__(self, strategy: Strategy, server_round: int) -> None:
        self._strategy, self._round = strategy, server_round
        self._known: dict[int, dict[str, int]] = {}

    def sizes(self, client: int) -> dict[str, int]:
        last = self._strategy.exchange.last_round_of(client)
        if last not in self._known:
            sizes = self._known[last] = {}
            for key, value in self._strategy.for_client(self._round, client).items():
                name = self._strategy.layers.of_key(key)
                sizes[name] = sizes.get(name, 0) + value.nbytes
        return self._known[last]


def _at_the_start(strategy: Strategy, federation: Federation) -> Strategy:
    """Return a strategy as it begins a run, which can be told of rounds without changing the given one."""
    begun = copy.copy(strategy)
    begun.clients, begun.exchange = federation.config.clients, Exchange(federation.layers.names)
    begun.set_global_model(federation.initial)
    return begun
