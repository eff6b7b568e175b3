"""Laws over the table: every strategy that is registered must keep them, through the real clients and messages."""

import copy
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message

from fedsim.federation.client import app
from fedsim.federation.federation import Federation
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy import Local, Received, Strategy, messages
from fedsim.strategy.messages import Instructions
from fedsim.strategy.traffic import Traffic
from strategies import STRATEGIES
from tests.strategies.agreement import assert_trains_alike
from tests.strategies.harness import ADAPTED, Mlp, Play, assert_close, lora_mlp, moe_mlp, norm_mlp

# Options that have no default, or that let more happen in a few rounds of a tiny model.
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_set": {"shared": "body"},
    "fedadam": {"shared": "body"},
    "fedprox": {"shared": "body"},
    "fedrep": {"head_epochs": 2},
    "fedpart": {"warm_up": 1, "rounds_each": 1},
    "fedlama": {"warm_up": 0},
    "llmc": {"shared": "body"},
    "pfedme": {"inner_steps": 2},
    "fedgucci": {"anchors": 3, "points": "random"},
    "fedselect": {"every": 1},
    "floco": {"endpoints": 3, "whole_rounds": 2},
    "pfedsim": {"warm_up": 1},
    "ccvr": {"after": 2},
    "layer_tree": {"single": -1.0, "every": 2},
    "barrier_mix": {"personal_epochs": 2},  # with one, both models of a client may see the same batches
    "barrier_gated": {"measure": "drift"},  # barriers are measured by a whole run
    "hierarchical_average": {"shared": "body", "order": "nearest"},
}
ROUNDS, STOPPED = 4, 2
every = pytest.mark.parametrize("name", STRATEGIES)


# Methods that are for models without normalisation.
PLAIN = ("fedma",)
# Without normalisation a cohort pads mini-batches. With these sizes they have 2, 3 and 3 examples in the second step,
# also where the second client is absent; padding a mini-batch of one would change no mean.
PADDED: dict[str, Any] = {"model": Mlp, "sizes": (5, 8, 7)}


def play_of(name: str, **settings: Any) -> Play:
    # More than a batch for each client: with one, two models that begin alike would end alike.
    chosen = {"sizes": (5, 8, 4), "rounds": ROUNDS, "local": {"epochs": 1}, "model": norm_mlp, **settings}
    model = {"model": Mlp} if name in PLAIN else {"model": lora_mlp} if name in ADAPTED else {}
    return Play(name, OPTIONS.get(name), **chosen | model)


@dataclass
class Seen:
    """What was to be seen of a round: messages, replies as they were read, and the strategy before and after it."""

    server_round: int
    sent: dict[int, Message]
    replied: dict[int, Message]
    received: Received
    before: Strategy
    after: Strategy
    kept: dict[int, dict[str, Params]]


@cache
def played(name: str, rounds: int = ROUNDS, **settings: Any) -> tuple[Play, tuple[Seen, ...]]:
    """Play a few rounds with one client absent in the second; each strategy only once for all laws."""
    play, seen = play_of(name, **settings), []
    for server_round in range(1, rounds + 1):
        received = play.train(server_round)
        before = copy.deepcopy(play.strategy)
        play.strategy.step(server_round, received)
        play.played = server_round
        kept = {client: play.kept(client) for client in play.replied}
        after = copy.deepcopy(play.strategy)
        seen.append(Seen(server_round, play.sent, play.replied, received, before, after, kept))
        if server_round == STOPPED and not settings:
            play.save(folder() / name)
    return play, tuple(seen)


@cache
def folder() -> Path:
    """Return where checkpoints lie until all laws are tested."""
    return Path(tempfile.mkdtemp())


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    shutil.rmtree(folder())
    for cached in (played, folder):
        cached.cache_clear()


def records_of(message: Message) -> dict[str, ArrayRecord]:
    """Return all arrays of a message except the instruments of the simulator."""
    apart = (messages.PROBE, messages.GLOBAL)
    records = {name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)}
    return {name: record for name, record in records.items() if name not in apart}


def aggregated(seen: Seen, received: Received) -> Params:
    """Return the global model after a step with other updates than those that came."""
    strategy = copy.deepcopy(seen.before)
    strategy.step(seen.server_round, received)
    return strategy.global_model


@every
def test_it_names_its_paper(name: str) -> None:
    _, _, references = STRATEGIES.places[name].docstring().partition("References\n----------\n")
    assert re.search(r"arXiv\s\d{4}\.\d{5}|\bnot on arXiv\b", references), references


@every
def test_what_is_shared_in_a_round_is_made_of_layers_and_the_same_each_time(name: str) -> None:
    for seen in played(name)[1]:
        strategy = seen.before
        group = strategy.shared(seen.server_round)
        assert set(group) <= set(strategy.layers.names)
        assert strategy.shared(seen.server_round) == group
        for client in range(3):
            assert set(strategy.shared_by(seen.server_round, client)) <= set(group)


@every
def test_clients_send_the_keys_of_the_layers_that_they_share(name: str) -> None:
    for seen in played(name)[1]:
        for client, reply in seen.replied.items():
            asked = set(seen.before.layers.keys(seen.before.shared_by(seen.server_round, client)))
            found = set(messages.arrays_of(reply.content, messages.ARRAYS))
            assert found <= asked if seen.before.partial else found == asked


@every
def test_what_changes_on_the_server_is_what_the_strategy_says_it_averages(name: str) -> None:
    for seen in played(name)[1]:
        groups = seen.before.shared(seen.server_round), seen.before.moved(seen.server_round)
        shared = {key for group in groups for key in seen.before.layers.keys(group)}
        before, after = seen.before.global_model, seen.after.global_model
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        if name not in CHANGES_MORE:
            assert changed <= shared, sorted(changed - shared)
        assert all(torch.equal(after[key], before[key]) for key in after if not after[key].is_floating_point())


CHANGES_MORE = {
    "fedluar": "layers that are not sent repeat their last update",
    "floco": "the head is made of endpoints, which travel as sets",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in (*PLAIN, *ADAPTED)])
def test_it_runs_on_the_factors_of_adapters_and_nothing_below_them_travels(name: str) -> None:
    play = Play(name, {**OPTIONS.get(name, {}), **({"after": 1} if name == "ccvr" else {})}, model=lora_mlp, rounds=2)
    base = {key: value.clone() for key, value in play.model.state_dict().items() if "base_layer" in key}
    assert len(base) == 4
    for _ in play.rounds():
        for message in (*play.sent.values(), *play.replied.values()):
            assert not any("base_layer" in key for record in records_of(message).values() for key in record)
    after = play.federation.model().state_dict()
    assert all(torch.equal(after[key], value) for key, value in base.items())
    assert all(np.isfinite(own["personalised/test/loss"]) for own in play.evaluate().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in (*PLAIN, *ADAPTED)])
def test_it_runs_on_a_mixture_of_experts(name: str) -> None:
    play = Play(name, {**OPTIONS.get(name, {}), **({"after": 1} if name == "ccvr" else {})}, model=moe_mlp, rounds=2)
    for _ in play.rounds():
        assert all(value.isfinite().all() for value in play.strategy.global_model.values())
    assert all(np.isfinite(own["personalised/test/loss"]) for own in play.evaluate().values())


@every
def test_the_order_in_which_replies_arrive_does_not_matter(name: str) -> None:
    for seen in played(name)[1]:
        replies = list(seen.replied.values())
        received = copy.deepcopy(seen.before).receive(seen.server_round, [*replies[1:], replies[0]])
        assert_close(aggregated(seen, received), seen.after.global_model, tolerance=0.0)


@every
def test_weights_matter_only_up_to_their_scale(name: str) -> None:
    for seen in played(name)[1][:3]:
        scaled = [replace(update, num_examples=7.3 * update.num_examples) for update in seen.received.updates]
        assert_close(aggregated(seen, Received(scaled)), seen.after.global_model, tolerance=1e-9)


MOVES_EQUAL_MODELS = {
    "fedavgm": "the last step continues",
    "barrier_mix": "the last step continues",
    "fedadam": "the server steps by its own step size",
    "fedyogi": "the server steps by its own step size",
    "fedadagrad": "the server steps by its own step size",
    "feddyn": "the server remembers what clients have moved",
    "qffl": "the farther clients move, the smaller is the server's share of it",
    "fedlws": "the average shrinks",
    "fedlaw": "the average shrinks",
    "flayer": "entries that nobody sends stay",
    "elastic": "equally sensitive clients move by tau",
    "flexlora": "the average of products is factorised again",
    "flora": "factors are merged and drawn again",
}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in MOVES_EQUAL_MODELS])
def test_equal_models_are_their_own_average(name: str) -> None:
    for seen in played(name)[1][:2]:
        one = seen.received.updates[0]
        equal = [
            replace(one, client=update.client, num_examples=update.num_examples) for update in seen.received.updates
        ]
        after = aggregated(seen, Received(equal))
        assert_close({key: after[key] for key in one.shared}, one.shared, tolerance=1e-9)


@pytest.mark.slow
@every
def test_nothing_personal_leaves_a_client(name: str) -> None:
    # Without running statistics, which are equal where data are, and biases before them, which never change.
    play, rounds = played(name, 3, **PADDED)
    public = values_of(play.initial)
    for seen in rounds:
        public |= values_of(seen.before.global_model)
        for client, reply in seen.replied.items():
            for record in records_of(seen.sent[client]).values():
                public |= values_of(messages.decode(record))
            shared = set(messages.arrays_of(reply.content, messages.ARRAYS))
            secret: set[float] = set()
            for record_name, kept in seen.kept[client].items():
                personal = {key: v for key, v in kept.items() if record_name != messages.MODEL or key not in shared}
                secret |= values_of(personal)
            sent = {name: values_of(messages.decode(record)) for name, record in records_of(reply).items()}
            for record_name, values in sent.items():
                if (name, record_name) not in SENT_AND_KEPT:
                    assert not (secret - public) & values, (record_name, seen.server_round, client)


# Of these methods, records that hold what a client keeps too, by design.
SENT_AND_KEPT = {
    ("scaffold", "control_change"): "in the first round the change of a control variate is the variate",
    ("moon", "arrays"): "a client remembers the model that it sent",
    ("floco", "endpoints"): "where a client's region is a corner, its head is an endpoint",
    ("fedselect", "arrays"): "clients remember the shared entries that they sent; those in the mask are not sent",
}


def values_of(params: Params) -> set[float]:
    """Return the numbers that cannot be equal by chance."""
    floats = [value.flatten().tolist() for value in params.values() if value.is_floating_point()]
    return {value for values in floats for value in values if value != round(value)}


@every
def test_the_bytes_that_are_counted_are_those_of_the_arrays_that_travel(name: str) -> None:
    play, rounds = played(name)
    for seen in rounds:
        for direction, sent in (("down", seen.sent), ("up", seen.replied)):
            traffic = Traffic(play.federation.layers)
            for client, message in sent.items():
                traffic.count(client, direction, message)
            rows = traffic.rows(seen.server_round)
            for client, message in sent.items():
                arrays = [array for record in records_of(message).values() for array in record.values()]
                written = sum(np.load(io.BytesIO(array.data)).nbytes for array in arrays)
                assert sum(row[direction] for row in rows if row["client"] == client) == written


@every
def test_a_run_that_was_stopped_continues_with_the_same_bytes(name: str) -> None:
    play, rounds = played(name)
    again = play_of(name)
    again.load(folder() / name, STOPPED)
    for seen in rounds[STOPPED:]:
        again.round(seen.server_round)
        assert_close(again.strategy.global_model, seen.after.global_model, tolerance=0.0)
    assert_close(again.strategy.state(), play.strategy.state(), tolerance=0.0)
    for client in range(3):
        kept, expected = again.kept(client), play.kept(client)
        assert kept.keys() == expected.keys()
        for record in kept:
            assert_close(kept[record], expected[record], tolerance=0.0)
        assert_close(again.personalised(client), play.personalised(client), tolerance=0.0)


@every
def test_a_client_continues_with_what_it_has_kept_and_taken(name: str) -> None:
    """What it neither keeps nor takes would silently be its initial value again."""
    play, rounds = played(name)
    for seen in rounds[1:]:
        for client, message in seen.sent.items():
            earlier = [each for each in rounds[: seen.server_round - 1] if client in each.kept]
            kept = set(earlier[-1].kept[client].get(messages.MODEL, {})) if earlier else set()
            taken = set(messages.arrays_of(message.content, messages.ARRAYS))
            unchanged = {key for key, v in play.initial.items() if torch.equal(v, seen.before.global_model[key])}
            drawn = {key for key in play.initial if "lora_" in key and name == "flora"}  # by both sides, from the seed
            if earlier:
                assert set(play.initial) <= kept | taken | unchanged | drawn


@pytest.mark.parametrize("initial", ["shared", "own"])
@every
def test_an_update_is_as_large_as_the_client_has_moved(
    name: str, initial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play, began = play_of(name), {}
    if initial == "own":
        own = {client: apart(play.initial, client) for client in range(3)}
        monkeypatch.setattr(Federation, "initial_of", lambda federation, client: own[client])
    train = app._trained

    def watched(federation: Federation, instructions: Instructions, started: list[Local], *rest: Any) -> Any:
        began.update({local.client: copy.deepcopy(local.params) for local in started})
        return train(federation, instructions, started, *rest)

    monkeypatch.setattr(app, "_trained", watched)
    for server_round in range(1, 4 if initial == "shared" else 3):
        updates = play.train(server_round).updates
        for update in updates:
            start = began[update.client] | play.downloaded(update.client)
            squares = sum(
                float((value - start[key])[(value != 0) | (name not in SENDS_ZEROS)].square().sum())
                for key, value in play.uploaded(update.client).items()
                if value.is_floating_point()
            )
            assert update.norm == pytest.approx(squares**0.5, rel=1e-6)
        play.strategy.step(server_round, play.received)


SENDS_ZEROS = ("flayer", "fedselect")  # in place of entries that are not sent


def apart(params: Params, client: int) -> Params:
    """Return a model that is far from another one, without changing what is no parameter."""
    stream = rng(0, "apart", client)
    return {
        key: value + torch.from_numpy(stream.normal(size=tuple(value.shape)))
        if key.endswith(("weight", "bias"))
        else value
        for key, value in params.items()
    }


@pytest.mark.slow
@every
def test_clients_that_train_together_do_what_they_do_alone(name: str) -> None:
    _, rounds = played(name, 3, **PADDED)
    together = play_of(name, **PADDED, cohort=3)
    for seen in rounds[:2]:
        together.round(seen.server_round)
        assert_close(together.strategy.global_model, seen.after.global_model, tolerance=1e-9)
        for client, kept in seen.kept.items():
            for record, expected in kept.items():
                assert_close(together.kept(client)[record], expected, tolerance=1e-9)


@pytest.mark.slow
@every
def test_a_cohort_of_new_and_known_clients_trains_as_one_after_the_other(name: str) -> None:
    alone, together = (play_of(name, rounds=3, absent={1: (1, 2)}, cohort=cohort) for cohort in (1, 3))
    assert_trains_alike(alone, together, range(3))
