"""The bytes that a run would send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.config import Config
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants
from fedsim.models.adapters import factors_of
from fedsim.models.layers import LayerGroup
from fedsim.strategy import Strategy
from fedsim.strategy.exchange import Exchange
from fedsim.strategy.traffic import layer_bytes, layers_of_factors, upload_bytes

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
        Bytes that a client sends and gets by parameter set, in each of these rounds.
    """

    up: int
    down: int
    counted: int
    groups: Sequence[LayerGroup]
    sizes: dict[str, int]
    sets: Sequence[Mapping[str, tuple[int, int]]]


def counted_rounds(config: Config) -> int:
    """Return the number of rounds that are looked at one by one."""
    return min(config.rounds, max(1, COUNTED // len(participants(config, 1))))


def planned_traffic(federation: Federation, strategy: Strategy) -> PlannedTraffic:
    """Count the bytes of all rounds, by the rule that a client takes what was averaged since it last took part."""
    config, size = federation.config, layer_bytes(strategy, federation.initial)
    sent = upload_bytes(strategy, federation.initial)
    exchange, counted = Exchange(federation.layers.names), counted_rounds(config)
    groups, planned, up, down = [], [], 0, 0
    factors = layers_of_factors(federation.layers, factors_of(strategy.model))

    def bytes_of(name: str, client: int, whole: Mapping[str, int]) -> int:
        return factors[name].bytes_of(client, whole[name]) if name in factors else whole[name]

    for server_round in range(1, counted + 1):
        group = strategy.shared(server_round)
        training = participants(config, server_round)
        up += sum(bytes_of(name, client, sent) for client in training for name in group)
        down += sum(bytes_of(name, client, size) for client in training for name in exchange.taken_by(client))
        exchange.note(server_round, (*group, *strategy.moved(server_round)), training)
        groups.append(group)
        planned.append(sets := dict(strategy.planned_sets(server_round)))
        up += sum(each for each, _ in sets.values()) * len(training)
        down += sum(taken for _, taken in sets.values()) * len(training)
    up, down = (each * config.rounds // counted for each in (up, down))
    return PlannedTraffic(up, down, counted, groups, dict(sent), planned)
