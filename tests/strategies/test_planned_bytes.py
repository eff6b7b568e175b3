"""A dry run's bytes are those that travel, for every method whose bytes do not follow from what clients learn."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flwr.app import ConfigRecord

from fedsim.config import Config
from fedsim.config.making import make_strategy
from fedsim.experiment.planning.traffic import planned_rounds, planned_traffic
from fedsim.federation.federation import Federation, federation_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import Strategy
from fedsim.strategy.messages import MODEL
from fedsim.strategy.traffic import Traffic
from strategies import STRATEGIES
from tests.strategies.harness import ADAPTED, FOLLOWS_FROM_TRAINING, Mlp, Play, lora_mlp, norm_mlp

# Options that have no default, or that let more travel in a few rounds of a tiny model.
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_set": {"shared": "body"},
    "fedpart": {"warm_up": 1, "rounds_each": 1},
    "pfedsim": {"warm_up": 1},
    "ccvr": {"after": 2},
    "fedgucci": {"anchors": 3},
    "fedselect": {"every": 1},
}
# Options with which a method sends what FedAvg does.
ALL_LAYERS: dict[str, list[dict[str, Any]]] = {
    "fedlama": [{"phi": 1, "warm_up": 0}],
    "fedluar": [{"recycled": 0.0}, {"recycled": 0.2}],  # of four layers
    "drift_gated": [{"select": "threshold"}, {"share": 1.0}],
}
Bytes = dict[tuple[int, int, str, str], tuple[int, int]]  # by round, client, set and layer, "" for all of a set


def play_of(name: str, options: Mapping[str, Any] | None = None, *, unseen: float = 0.0) -> Play:
    """Play with two of three clients in a round, or with one of the two that are seen."""
    model = Mlp if name == "fedma" else lora_mlp if name in ADAPTED else norm_mlp
    given = OPTIONS.get(name) if options is None else options
    play = Play(name, given, sizes=(5, 8, 4), rounds=5, model=model, local={"epochs": 1}, absent={})
    who = {"participation": 0.5 if unseen else 0.67, "unseen": unseen}
    for setting, value in who.items():
        setattr(play.strategy, setting, value)
    object.__setattr__(play.federation, "config", play.federation.config.model_copy(update=who))
    return play


def planned(federation: Federation, strategy: Strategy) -> Bytes:
    found: Bytes = {}
    for number, (_, exchanges) in enumerate(planned_rounds(federation, strategy, federation.config.rounds), 1):
        for each in exchanges:
            for client in each.clients:
                for layer in {**each.up, **each.down}:
                    found[number, client, MODEL, layer] = each.up.get(layer, 0), each.down.get(layer, 0)
                for name, both in each.sets.items():
                    found[number, client, name, ""] = both
    return found


def by_set(rows: list[dict[str, Any]]) -> Bytes:
    found: Bytes = {}
    for row in rows:
        place = row["round"], row["client"], row["set"], row["layer"] if row["set"] == MODEL else ""
        up, down = found.get(place, (0, 0))
        found[place] = up + row["up"], down + row["down"]
    return {place: both for place, both in found.items() if any(both)}


def sent(play: Play) -> Bytes:
    """Play all rounds; return the bytes of the messages."""
    rows, strategy = list[dict[str, Any]](), play.strategy
    for server_round in range(1, play.config.rounds + 1):
        asked = list(strategy.configure_train(server_round, strategy.arrays, ConfigRecord(), play.engine))
        replies, traffic = list(play.engine.send_and_receive(asked)), Traffic(play.federation.layers, strategy.model)
        for message in asked:
            traffic.count(message.metadata.dst_node_id, "down", message)
        for reply in replies:
            assert not reply.has_error(), reply.error.reason
            traffic.count(reply.metadata.src_node_id, "up", reply)
        strategy.step(server_round, strategy.receive(server_round, replies))
        rows += traffic.rows(server_round)
    return by_set(rows)


def check(play: Play) -> None:
    expected = planned(play.federation, play.strategy)
    total = planned_traffic(play.federation, play.strategy)
    assert not total.at_most
    assert (total.up, total.down) == tuple(sum(both[way] for both in expected.values()) for way in (0, 1))
    assert expected == sent(play)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_bytes_that_are_planned_are_those_that_travel(name: str) -> None:
    play = play_of(name)
    assert bool(play.strategy.unplanned) == (name in FOLLOWS_FROM_TRAINING)
    if not play.strategy.unplanned:
        check(play)


@pytest.mark.parametrize(("name", "options"), [(name, each) for name, cases in ALL_LAYERS.items() for each in cases])
def test_where_all_layers_travel_in_each_round_all_bytes_are_known(name: str, options: dict[str, Any]) -> None:
    play = play_of(name, options)
    assert not play.strategy.unplanned
    check(play)


@pytest.mark.parametrize("options", [{"share": 0.5}, {"select": "threshold", "threshold": 0.01}])
def test_bounds_are_not_exceeded(options: dict[str, Any]) -> None:
    play = play_of("drift_gated", options)
    bounds = planned(play.federation, play.strategy)
    assert planned_traffic(play.federation, play.strategy).at_most
    found = sent(play)
    assert found.keys() <= bounds.keys()
    assert all(each <= most for place, both in found.items() for each, most in zip(both, bounds[place], strict=True))
    assert found != bounds


@pytest.mark.parametrize("name", ["scaffold", "flora", "pfedsim", "fedselect"])
def test_clients_that_never_train_exchange_nothing(name: str) -> None:
    check(play_of(name, unseen=0.34))


@pytest.mark.parametrize("name", ["fedlp", "elastic", "qffl"])
def test_a_group_of_layers_is_all_that_is_planned(name: str) -> None:
    check(play_of(name, {"shared": "body"}))


def test_rounded_uploads_are_planned_in_half_their_bytes(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    strategy = {"name": "scaffold", "upload_precision": "bfloat16"}
    config = tiny(rounds=3, participation=0.5, strategy=strategy, barriers={"every": 0})
    federation = federation_of(config)
    rows = read_rows(play(config).communication)
    assert planned(federation, make_strategy(config, federation.model())) == by_set(rows.to_dict("records"))
