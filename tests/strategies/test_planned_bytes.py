"""A dry run's bytes are those that travel, for every method whose bytes do not follow from what clients learn."""

from typing import Any

import pytest
from flwr.app import ConfigRecord

from fedsim.experiment.planning.traffic import planned_traffic
from fedsim.strategy.traffic import Traffic
from strategies import STRATEGIES
from tests.strategies.harness import ADAPTED, Mlp, Play, lora_mlp, norm_mlp

# Options that have no default, or that let more travel in a few rounds of a tiny model.
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_set": {"shared": "body"},
    "fedpart": {"warm_up": 1, "rounds_each": 1},
    "pfedsim": {"warm_up": 1},
    "ccvr": {"after": 2},
    "fedgucci": {"anchors": 3},
    "fedselect": {"every": 1},
    "fedlama": {"warm_up": 0},
    "layer_tree": {"single": -1.0, "every": 2},
    "barrier_gated": {"measure": "drift"},
}
FOLLOWS_FROM_TRAINING = {"fedlama", "fedluar", "drift_gated", "barrier_gated", "heurpfedla", "layer_tree"}


PARTICIPATION = 0.67  # two of three clients in a round


def play_of(name: str) -> Play:
    model = Mlp if name == "fedma" else lora_mlp if name in ADAPTED else norm_mlp
    local, absent = {"epochs": 1}, dict[int, int]()
    play = Play(name, OPTIONS.get(name), sizes=(5, 8, 4), rounds=5, model=model, local=local, absent=absent)
    play.strategy.participation = PARTICIPATION
    config = play.federation.config.model_copy(update={"participation": PARTICIPATION})
    object.__setattr__(play.federation, "config", config)
    return play


def bytes_sent(play: Play) -> tuple[int, int]:
    """Play all rounds; return the bytes up and down."""
    up = down = 0
    strategy = play.strategy
    for server_round in range(1, play.config.rounds + 1):
        asked = list(strategy.configure_train(server_round, strategy.arrays, ConfigRecord(), play.engine))
        replies, traffic = list(play.engine.send_and_receive(asked)), Traffic(play.federation.layers, strategy.model)
        for message in asked:
            traffic.count(message.metadata.dst_node_id, "down", message)
        for reply in replies:
            assert not reply.has_error(), reply.error.reason
            traffic.count(reply.metadata.src_node_id, "up", reply)
        strategy.step(server_round, strategy.receive(server_round, replies))
        rows = traffic.rows(server_round)
        up, down = up + sum(row["up"] for row in rows), down + sum(row["down"] for row in rows)
    return up, down


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_bytes_that_are_planned_are_those_that_travel(name: str) -> None:
    play = play_of(name)
    planned = planned_traffic(play.federation, play.strategy)
    assert bool(play.strategy.unplanned) == (name in FOLLOWS_FROM_TRAINING)
    if not play.strategy.unplanned:
        assert (planned.up, planned.down) == bytes_sent(play)
