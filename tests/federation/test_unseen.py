"""Clients that never take part in training: who they are, what they get, and that nobody learns from them."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import nn

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.rounds import RoundSummary
from fedsim.federation.federation import federation_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result
from fedsim.seeds import rng
from fedsim.strategy.messages import decode
from fedsim.strategy.participants import draw_evaluated, draw_participants, draw_unseen
from partitions import Partition, Split
from strategies import FedAvg, LayerSet
from tests.strategy.test_strategy import Nodes


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))


@pytest.mark.parametrize(("clients", "unseen", "count"), [(10, 0.2, 2), (10, 0.01, 1), (7, 0.5, 4), (2, 0.1, 1)])
def test_the_number_of_unseen_clients_is_rounded_and_at_least_one(clients: int, unseen: float, count: int) -> None:
    chosen = draw_unseen(3, clients, unseen)
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(clients))
    assert draw_unseen(3, clients, 0.0) == []


def test_unseen_clients_are_drawn_by_the_seed() -> None:
    draws = {tuple(draw_unseen(seed, 30, 0.2)) for seed in range(20)}
    assert len(draws) > 15
    assert draw_unseen(1, 30, 0.2) == draw_unseen(1, 30, 0.2)


def test_participation_is_a_share_of_the_other_clients() -> None:
    unseen = set(draw_unseen(0, 20, 0.25))
    every: set[int] = set()
    for server_round in range(1, 40):
        chosen = draw_participants(0, server_round, 20, 0.4, 0.25)
        assert len(chosen) == 6  # of 15
        assert chosen == sorted(set(chosen) - unseen)
        every |= set(chosen)
    assert every == set(range(20)) - unseen
    assert draw_participants(0, 1, 20, 1.0, 0.25) == sorted(every)


def test_without_unseen_clients_the_draws_are_those_of_before() -> None:
    for server_round in range(1, 5):
        drawn = rng(7, "participation", server_round).choice(20, size=6, replace=False)
        assert draw_participants(7, server_round, 20, 0.3) == sorted(drawn.tolist())
    evaluated = rng(7, "evaluated clients").choice(20, size=4, replace=False)
    assert draw_evaluated(7, 20, 4) == sorted(evaluated.tolist())


def test_so_many_seen_and_at_most_as_many_unseen_clients_are_evaluated() -> None:
    unseen = set(draw_unseen(0, 20, 0.25))
    chosen = set(draw_evaluated(0, 20, 3, 0.25))
    assert len(chosen & unseen) == len(chosen - unseen) == 3
    assert draw_evaluated(0, 20, None, 0.25) == list(range(20))
    assert unseen < set(draw_evaluated(0, 20, 8, 0.25))


def test_an_unseen_client_gets_no_training_message_and_begins_as_any_other() -> None:
    strategy, grid = LayerSet(net(), shared="0", unseen=0.4, seed=1, send_initial=False), Nodes(5, 1)
    unseen = set(draw_unseen(1, 5, 0.4))
    arrays = ArrayRecord(net().state_dict())
    sent = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    assert {message.metadata.dst_node_id for message in sent} == set(range(5)) - unseen
    averaged_in = torch.tensor([1 if name == "0" else -1 for name in strategy.layers.names])
    strategy.exchange.load_progress({"averaged_in": averaged_in, "last_round": torch.zeros(0, dtype=torch.int64)})
    for message in strategy.configure_evaluate(1, strategy.arrays, ConfigRecord(), grid):
        client = message.metadata.dst_node_id
        assert message.content["config"].get("unseen", False) == (client in unseen)
        assert list(decode(message.content["arrays"])) == ["0.weight", "0.bias"]


@pytest.mark.slow
def test_a_whole_run_never_learns_from_an_unseen_client(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(clients=6, unseen=0.34, rounds=3, participation=0.5, strategy={"name": "layer_set", "shared": "body"})
    folder, unseen = play(config), set(draw_unseen(0, 6, 0.34))
    participants = json.loads(folder.participants.read_text())
    assert [len(each) for each in participants] == [2, 2, 2]
    assert not unseen & {client for each in participants for client in each}
    assert not unseen & set(read_rows(folder.communication)["client"])
    rows = read_rows(folder.metrics)
    own = rows[rows["client"].isin(unseen)]
    assert set(zip(own["model"], own["split"], strict=True)) == {("global", "unseen"), ("personalised", "unseen")}
    assert set(rows[rows["split"] == "unseen"]["client"]) == unseen
    trained = federation_of(config).data.trained_on
    train = federation_of(config).data.split.train
    assert not {position for client in unseen for position in train[client]} & set(trained)
    assert len(trained) == sum(len(train[client]) for client in range(6) if client not in unseen)


def test_a_run_does_not_depend_on_the_data_of_unseen_clients(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    """The same run with other data at the unseen clients differs in what is measured there only."""
    config = tiny(unseen=0.25, strategy={"name": "layer_set", "shared": "body"})
    plain = play(config, "plain")
    [unseen] = draw_unseen(0, 4, 0.25)
    federation, strategy = experiment.prepare(config)
    parts = [Partition(part.indices.copy(), part.offsets) for part in federation.data.split.parts]
    for part in parts:
        part[unseen][:] = part[unseen][:1]  # one example, again and again
    federation = replace(federation, data=replace(federation.data, split=Split(*parts)))
    other = RunFolder(plain.path.parent / "other")
    experiment.run(config, other, lambda summary: None, (federation, strategy))
    before, after = read_rows(plain.metrics), read_rows(other.metrics)
    assert not before.equals(after)
    seen = before["split"] != "unseen"
    assert before[seen].equals(after[seen])


def test_means_of_reports_leave_unseen_clients_out(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    summaries: list[RoundSummary] = []
    config = tiny(clients=6, unseen=0.34)
    folder = RunFolder(play(config).path.parent / "again")
    experiment.run(config, folder, summaries.append)
    result, unseen = read_result(folder), set(draw_unseen(0, 6, 0.34))
    for model in ("personalised", "global"):
        assert set(result.by_client(model).index) == set(range(6)) - unseen
    assert summaries[-1].personalised_accuracy == pytest.approx(np.mean(result.by_client("personalised")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unseen": 0.9}, "unseen = 0.9: leaves none of clients = 4 to train; use a smaller share"),
        ({"clients": 1, "unseen": 0.1}, "unseen = 0.1: leaves none of clients = 1 to train"),
        ({"unseen": 1.0}, "unseen = 1.0: must be less than 1"),
        ({"unseen": -0.1}, "unseen = -0.1: must be at least 0"),
    ],
)
def test_a_share_that_leaves_nobody_to_train_is_named(
    tiny: Callable[..., Config], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**settings)


def test_a_strategy_says_what_is_wrong_with_its_share() -> None:
    with pytest.raises(ValueError, match=r"unseen = 1\.5 must be at least 0 and less than 1"):
        FedAvg(net(), unseen=1.5)
    with pytest.raises(ValueError, match=r"unseen = 0\.9 of 3 clients must leave one to train; use a smaller share"):
        list(FedAvg(net(), unseen=0.9).configure_train(1, ArrayRecord(net().state_dict()), ConfigRecord(), Nodes(3, 1)))
