"""The bytes that a run would send."""

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedsim.config import Config
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants
from fedsim.models.adapters import factors_of
from fedsim.models.layers import LayerGroup
from fedsim.strategy import ClientRule, Strategy
from fedsim.strategy.exchange import Exchange
from fedsim.strategy.traffic import layer_bytes, layers_of_factors, upload_bytes

# Number of updates that are counted, about; of longer runs, those of the first rounds.
COUNTED = 40_000
PLANS = ("planned_layers", "planned_sets")
BUNDLED = ("fedsim", "strategies")  # packages with methods that are not the user's
Sets = tuple[tuple[str, tuple[int, int]], ...]  # bytes that a client sends and gets, by parameter set


@dataclass(frozen=True)
class PlannedTraffic:
    """Bytes of all rounds, of layers and of the parameter sets that the method plans.

    Parameters
    ----------
    up, down
        Bytes; those down are not known (None) if the user's method decides what clients take.
    counted
        Number of rounds that are counted; the others are taken to have as many bytes as these on average, without the
        first, in which no client takes what an earlier round has changed.
    groups
        What each of these shares.
    sizes
        Bytes by layer, as a client sends it.
    sets
        Bytes that a client sends and gets by parameter set, in each of these rounds: all that differ between clients.
    at_most
        Whether `up` and `down` are bounds, as clients may send less than they are asked for.
    """

    up: int
    down: int | None
    counted: int
    groups: Sequence[LayerGroup]
    sizes: dict[str, int]
    sets: Sequence[Sequence[Mapping[str, tuple[int, int]]]]
    at_most: bool


@dataclass(frozen=True)
class PlannedExchange:
    """What some clients of a round exchange with the server, each the same.

    Parameters
    ----------
    up, down
        Bytes by layer.
    sets
        Bytes that a client sends and gets, by parameter set.
    """

    clients: Sequence[int]
    up: Mapping[str, int]
    down: Mapping[str, int]
    sets: Mapping[str, tuple[int, int]]

    @property
    def total(self) -> tuple[int, int]:
        """Bytes up and down of all these clients."""
        up, down = (sum(both[way] for both in self.sets.values()) for way in (0, 1))
        count = len(self.clients)
        return count * (up + sum(self.up.values())), count * (down + sum(self.down.values()))


def counted_rounds(config: Config) -> int:
    """Return the number of rounds that are looked at one by one."""
    return min(config.rounds, max(2, COUNTED // len(participants(config, 1))))


def planned_traffic(federation: Federation, strategy: Strategy) -> PlannedTraffic:
    """Count the bytes of all rounds, by the rule that a client takes what was averaged since it last took part.

    Clients that would fail are not foreseen, and what follows from training is as in the first round.
    """
    config, counted = federation.config, counted_rounds(federation.config)
    groups, sets, totals = [], [], []
    for group, exchanges in planned_rounds(federation, strategy, counted):
        groups.append(group)
        sets.append([dict(each) for each in dict.fromkeys(tuple(each.sets.items()) for each in exchanges)])
        totals.append([sum(way) for way in zip(*(each.total for each in exchanges), strict=True)])
    up, down = (_in_all(config.rounds, each) for each in zip(*totals, strict=True))
    known = None if is_custom(strategy, "for_client", plan="planned_layers") else down
    sent = upload_bytes(strategy, federation.initial)
    return PlannedTraffic(up, known, counted, groups, sent, sets, _may_send_less(strategy))


def _in_all(rounds: int, counted: Sequence[int]) -> int:
    """Return the bytes of all rounds from those of the first ones."""
    left = rounds - len(counted)
    return sum(counted) + (left * sum(counted[1:]) // (len(counted) - 1) if left else 0)


def planned_rounds(
    federation: Federation, strategy: Strategy, rounds: int
) -> Iterator[tuple[LayerGroup, list[PlannedExchange]]]:
    """Yield what each of the first rounds shares, and what its clients exchange."""
    config, strategy = federation.config, _at_the_start(strategy, federation)
    plan = _RoundPlan(federation, strategy)
    for server_round in range(1, rounds + 1):
        group, training = strategy.shared(server_round), participants(config, server_round)
        yield group, list(plan.exchanges(server_round, training))
        strategy.exchange.note(server_round, (*group, *strategy.moved(server_round)), training)


def is_custom(strategy: Strategy, *hooks: str, plan: str = "") -> bool:
    """Return whether the user's code overrides one of these hooks, without the hook that plans it."""
    for owner in (_owner(strategy, hook) for hook in hooks):
        is_planned = bool(plan) and issubclass(_owner(strategy, plan), owner)
        if owner.__module__.partition(".")[0] not in BUNDLED and not is_planned:
            return True
    return False


def _owner(strategy: Strategy, hook: str) -> type:
    """Return the class that has the last word on a hook."""
    return next(each for each in type(strategy).__mro__ if hook in vars(each))


def may_send_sets(strategy: Strategy) -> bool:
    """Return whether the user's method may send parameter sets that it does not plan."""
    sends = type(strategy).sets_for is not Strategy.sets_for or strategy.client_rule.finish is not ClientRule.finish
    return sends and is_custom(strategy, "sets_for", "client_rule", plan="planned_sets")


def _may_send_less(strategy: Strategy) -> bool:
    """Return whether clients may send fewer layers than are planned."""
    partial = strategy.partial and (bool(strategy.unplanned) or is_custom(strategy, "partial", "client_rule"))
    return partial or is_custom(strategy, "shared_by")


class _RoundPlan:
    """What clients exchange in a round; hooks that are the same for all clients are not asked for each."""

    def __init__(self, federation: Federation, strategy: Strategy) -> None:
        self._strategy = strategy
        self._up, self._down = upload_bytes(strategy, federation.initial), layer_bytes(strategy, federation.initial)
        self._factors = layers_of_factors(federation.layers, factors_of(strategy.model))
        self._ranked = list({each.ranks: each for each in self._factors.values() if each.ranks}.values())
        # A method of the user's may need what only a run gives it.
        self._shared_by = not is_custom(strategy, "shared_by") and type(strategy).shared_by is not Strategy.shared_by
        planned = any(getattr(type(strategy), each) is not getattr(Strategy, each) for each in PLANS)
        self._differ = planned or self._shared_by or bool(self._ranked)

    def exchanges(self, server_round: int, clients: Iterable[int]) -> Iterator[PlannedExchange]:
        if not self._differ:
            alike = _grouped(clients, self._strategy.exchange.last_round_of)
        else:
            alike = _grouped(clients, lambda client: self._planned(server_round, client))
        for each in alike:
            up, down, sets, _ = self._planned(server_round, each[0])
            yield PlannedExchange(
                each, self._sizes(self._up, up, each[0]), self._sizes(self._down, down, each[0]), dict(sets)
            )

    def _planned(
        self, server_round: int, client: int
    ) -> tuple[tuple[str, ...], tuple[str, ...], Sets, tuple[int | None, ...]]:
        """Return the layers that a client sends and takes, its sets, and its ranks."""
        strategy = self._strategy
        group = strategy.shared_by(server_round, client) if self._shared_by else strategy.shared(server_round)
        taken = tuple(strategy.planned_layers(server_round, client))
        sets = ((name, both) for name, both in strategy.planned_sets(server_round, client).items() if any(both))
        return group.layers, taken, tuple(sorted(sets)), tuple(each.rank_of(client) for each in self._ranked)

    def _sizes(self, whole: Mapping[str, int], layers: Iterable[str], client: int) -> dict[str, int]:
        return {
            name: self._factors[name].bytes_of(client, whole[name]) if name in self._factors else whole[name]
            for name in layers
        }


def _grouped(clients: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return the clients in groups with the same key."""
    groups: dict[Hashable, list[int]] = {}
    for client in clients:
        groups.setdefault(key(client), []).append(client)
    return list(groups.values())


def _at_the_start(strategy: Strategy, federation: Federation) -> Strategy:
    """Return a strategy as it begins a run, which can note rounds without changing the given one."""
    begun = copy.copy(strategy)
    begun.clients, begun.exchange = federation.config.clients, Exchange(federation.layers.names)
    begun.set_global_model(federation.initial)
    return begun
