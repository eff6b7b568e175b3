"""The base class: what travels, what is averaged, and what Flower's own strategies say about it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import nn

from fedsim.errors import RunError
from fedsim.federation.engines.grid import Engine
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, LocalPlan, Phase, Precision, Received, Strategy
from fedsim.strategy.faults import count_kinds
from fedsim.strategy.messages import Instructions, decode, encode
from fedsim.strategy.participants import draw_participants
from fedsim.strategy.updates import unlike_others
from strategies import STRATEGIES, FedAvg, LayerCycle, LayerSet, Local


class Nodes(Engine):
    """A grid that only knows its nodes; tests answer the messages by hand."""

    def handle(self, messages):
        raise NotImplementedError

    def save_clients(self, folder, clients, server_round):
        raise NotImplementedError

    def load_clients(self, folder, rounds):
        raise NotImplementedError


def net() -> nn.Module:
    """Two layers of one weight each, ``0`` and ``1``, with the values 0."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def configure(strategy: Strategy, grid: Engine, server_round: int, **config: bool) -> dict[int, Message]:
    arrays = strategy.arrays if strategy.global_model else ArrayRecord(net().state_dict())
    sent = strategy.configure_train(server_round, arrays, ConfigRecord(config), grid)
    return {message.metadata.dst_node_id: message for message in sent}


def reply(message: Message, params: Params, weight: float = 1.0) -> Message:
    content = {"arrays": encode(params), "metrics": MetricRecord({"num-examples": weight})}
    return Message(RecordDict(content), reply_to=message)


def values(params: Params) -> dict[str, float]:
    return {key.partition(".")[0]: value.item() for key, value in params.items()}


def test_three_clients_two_layers_three_rounds_by_hand() -> None:
    """Layer 0 is shared in rounds 1 and 3, layer 1 in round 2; client 2 sleeps in round 2.

    Training adds client + 1 to every weight that the client holds.
    """

    class Alternate(Strategy):
        def shared(self, server_round: int) -> LayerGroup:
            return self.layers.group("0" if server_round % 2 else "1")

    strategy, grid = Alternate(net(), send_initial=False), Nodes(3, 1)
    own = {client: {"0": 0.0, "1": 0.0} for client in range(3)}

    def play(server_round: int, awake: Iterable[int], weights: dict[int, float]) -> dict[int, dict[str, float]]:
        taken, replies = {}, []
        for client, message in configure(strategy, grid, server_round).items():
            if client not in awake:
                continue
            taken[client] = values(decode(message.content["arrays"]))
            own[client] |= taken[client]
            own[client] = {layer: value + client + 1 for layer, value in own[client].items()}
            upload = Instructions.read(message.content["config"]).upload
            params = {key: torch.tensor([[own[client][key.partition(".")[0]]]]) for key in upload}
            replies.append(reply(message, params, weights[client]))
        strategy.aggregate_train(server_round, replies)
        return taken

    # Round 1: nothing was averaged yet, so nobody takes anything. 0 becomes (1*1 + 2*2 + 1*3) / 4 = 2.
    assert play(1, (0, 1, 2), {0: 1, 1: 2, 2: 1}) == {0: {}, 1: {}, 2: {}}
    assert values(strategy.global_model) == {"0": 2, "1": 0}
    assert own == {0: {"0": 1, "1": 1}, 1: {"0": 2, "1": 2}, 2: {"0": 3, "1": 3}}

    # Round 2: both take layer 0. Then 1 becomes (1*2 + 3*4) / 4 = 3.5 of clients 0 (2) and 1 (4).
    assert play(2, (0, 1), {0: 1, 1: 3}) == {0: {"0": 2}, 1: {"0": 2}}
    assert values(strategy.global_model) == {"0": 2, "1": 3.5}
    assert own == {0: {"0": 3, "1": 2}, 1: {"0": 4, "1": 4}, 2: {"0": 3, "1": 3}}

    # Round 3: 0 and 1 take layer 1 only: their layer 0 is newer than the average of round 1. Client 2 last took part
    # in round 1, so it takes that round's layer 0 and layer 1.
    assert play(3, (0, 1, 2), {0: 1, 1: 1, 2: 1}) == {0: {"1": 3.5}, 1: {"1": 3.5}, 2: {"0": 2, "1": 3.5}}
    assert own == {0: {"0": 4, "1": 4.5}, 1: {"0": 6, "1": 5.5}, 2: {"0": 5, "1": 6.5}}
    assert values(strategy.global_model) == {"0": 5, "1": 3.5}


def model_with_buffers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def random_updates(model: nn.Module, clients: int, seed: int = 0) -> list[Params]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
        for _ in range(clients)
    ]


def aggregate(strategy: Strategy, model: nn.Module, updates: list[Params], weights: list[float]) -> Params:
    """Play one round of a strategy through Flower's interface; replies come in the wrong order."""
    grid = Nodes(len(updates), 1)
    sent = strategy.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), grid)
    replies = []
    for message in sent:
        client = message.metadata.dst_node_id
        upload = Instructions.read(message.content["config"]).upload
        replies.append(reply(message, {key: updates[client][key] for key in upload}, weights[client]))
    arrays, _ = strategy.aggregate_train(1, reversed(replies))
    assert arrays is not None
    return decode(arrays)


def test_one_round_of_full_equals_flowers_fedavg() -> None:
    model, weights = model_with_buffers(), [3.0, 10.0, 1.0, 7.0]
    updates = random_updates(model, 4)
    ours = aggregate(FedAvg(model), model, updates, weights)
    flower = FlowerFedAvg(min_available_nodes=4, min_train_nodes=4)
    sent = flower.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), Nodes(4, 1))
    replies = [reply(m, updates[m.metadata.dst_node_id], weights[m.metadata.dst_node_id]) for m in sent]
    arrays, _ = flower.aggregate_train(1, replies)
    theirs = arrays.to_torch_state_dict()
    for key, value in ours.items():
        if value.is_floating_point():
            assert torch.allclose(value, theirs[key], rtol=1e-6, atol=1e-7), key
    # Flower averages the counter of batches into a float; ours stays the server's own integer.
    assert ours["1.num_batches_tracked"].dtype == torch.int64


def test_all_layers_as_a_set_are_full_and_no_layers_are_local() -> None:
    model, weights = model_with_buffers(), [3.0, 10.0, 1.0]
    updates = random_updates(model, 3)
    full, everything = (aggregate(s, model, updates, weights) for s in (FedAvg(model), LayerSet(model, shared="all")))
    assert all(torch.equal(full[key], everything[key]) for key in full)
    local, nothing = (aggregate(s, model, updates, weights) for s in (Local(model), LayerSet(model, shared="none")))
    start = model.state_dict()
    assert all(torch.equal(start[key], local[key]) and torch.equal(start[key], nothing[key]) for key in start)


def test_only_the_shared_layers_change_and_travel() -> None:
    model = model_with_buffers()
    updates = random_updates(model, 2)
    body = aggregate(LayerSet(model, shared="body"), model, updates, [1.0, 3.0])
    start = model.state_dict()
    assert torch.equal(body["3.weight"], start["3.weight"])
    expected = (updates[0]["0.weight"].double() + 3 * updates[1]["0.weight"].double()) / 4
    assert torch.equal(body["0.weight"], expected.float())
    assert not torch.equal(body["1.running_mean"], start["1.running_mean"])


def test_fedbn_keeps_running_statistics_personal() -> None:
    model = model_with_buffers()
    after = aggregate(LayerSet(model, shared="!norm"), model, random_updates(model, 2), [1.0, 1.0])
    start = model.state_dict()
    assert {key for key in start if not torch.equal(after[key], start[key])} == {
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    }


@pytest.mark.parametrize("buffers", ["personal", "recompute"])
def test_personal_buffers_do_not_travel(buffers: str) -> None:
    model = model_with_buffers()
    after = aggregate(FedAvg(model, buffers=buffers), model, random_updates(model, 2), [1.0, 1.0])
    assert torch.equal(after["1.running_mean"], model.state_dict()["1.running_mean"])
    assert not torch.equal(after["1.weight"], model.state_dict()["1.weight"])


def test_layer_cycle_gives_each_layer_its_turn_and_begins_again() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))

    def turns(**options: object) -> str:
        strategy = LayerCycle(model, **options)
        return " ".join(strategy.shared(server_round).layers[0] for server_round in range(1, 8))

    assert turns() == "0 1 2 0 1 2 0"
    assert turns(order="deep-first") == "2 1 0 2 1 0 2"
    assert turns(rounds_each=2) == "0 0 1 1 2 2 0"
    with pytest.raises(ValueError, match="rounds_each = 0"):
        LayerCycle(model, rounds_each=0)


def test_updates_are_sorted_by_client_whatever_the_order_of_the_replies() -> None:
    strategy = FedAvg(net())
    sent = configure(strategy, Nodes(4, 1), 1)
    replies = [reply(sent[client], strategy.global_model) for client in (2, 0, 3, 1)]
    received = strategy.receive(1, replies)
    assert [update.client for update in received.updates] == [0, 1, 2, 3]
    assert received.left_out == {}


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_averaging_replies_as_they_come_gives_the_bits_of_averaging_them_together(precision: Precision) -> None:
    model = model_with_buffers()
    updates = random_updates(model, 11)
    results = []
    for in_order in (False, True):
        strategy = FedAvg(model, precision=precision)
        sent = list(strategy.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), Nodes(11, 1)))
        upload = Instructions.read(sent[0].content["config"]).upload
        replies = (reply(sent[k], {key: updates[k][key] for key in upload}, 1.0 + k) for k in range(11) if k != 5)
        received = strategy.receive(1, replies, in_order=in_order)
        assert [update.client for update in received.updates] == [k for k in range(11) if k != 5]
        assert received.left_out == {5: "it did not reply"}
        assert all(bool(update.shared) != in_order for update in received.updates)
        strategy.step(1, received)
        results.append(strategy.global_model)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


class Clipped(FedAvg):
    """A strategy with a rule of its own, which needs all updates at once."""

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        largest = max(updates, key=lambda update: update.num_examples)
        return {key: value for key, value in largest.shared.items() if key != "1.weight"}


def test_a_rule_of_the_user_gets_all_updates_whatever_the_order() -> None:
    strategy = Clipped(net(), send_initial=False)
    sent = configure(strategy, Nodes(2, 1), 1)
    received = strategy.receive(1, [reply(sent[k], strategy.global_model) for k in (0, 1)], in_order=True)
    assert received.average is None
    assert all(update.shared for update in received.updates)


def test_a_rule_that_leaves_out_what_clients_do_not_keep_is_an_error() -> None:
    strategy = Clipped(net(), send_initial=False)
    sent = configure(strategy, Nodes(1, 1), 1)
    received = strategy.receive(1, [reply(sent[0], strategy.global_model)])
    with pytest.raises(RunError, match=r"Clipped.aggregate returns no value for '1.weight', .* Clipped.kept"):
        strategy.step(1, received)


@pytest.mark.parametrize("name", ["full", "local", "layer_set", "layer_cycle"])
def test_a_client_keeps_what_it_does_not_share(name: str) -> None:
    model = model_with_buffers()
    strategy = STRATEGIES[name](model, send_initial=False)
    strategy.set_global_model(model.state_dict())
    for server_round in (1, 2):
        sent = next(iter(strategy.configure_train(server_round, strategy.arrays, ConfigRecord(), Nodes(2, 1))))
        instructions = Instructions.read(sent.content["config"])
        assert not set(instructions.upload) & set(instructions.keep)
        assert set(instructions.upload) | set(instructions.keep) == set(strategy.global_model)


def test_a_fixed_sample_of_the_clients_is_evaluated_if_so_many_are_asked_for() -> None:
    strategy = FedAvg(net(), evaluate_clients=3)
    strategy.set_global_model(net().state_dict())
    chosen = [
        [
            message.metadata.dst_node_id
            for message in strategy.configure_evaluate(r, strategy.arrays, ConfigRecord(), Nodes(9, 1))
        ]
        for r in (1, 2)
    ]
    assert chosen[0] == chosen[1] == sorted(set(chosen[0]))
    assert len(chosen[0]) == 3


# What is not a valid update.


def spoil(message: Message, params: Params, how: str) -> Message | None:
    if how == "error":
        return Message(Error(2, "Traceback\nValueError: no luck"), reply_to=message)
    if how == "missing entry":
        return reply(message, dict(list(params.items())[1:]))
    if how == "wrong shape":
        return reply(message, params | {"0.weight": torch.zeros(2, 2)})
    if how == "not finite":
        return reply(message, params | {"0.weight": torch.tensor([[float("nan")]])})
    if how == "no weight":
        return reply(message, params, weight=0.0)
    if how in TYPES:
        return reply(message, params | {"0.weight": params["0.weight"].to(getattr(torch, how))})
    if how == "no array":
        spoilt = reply(message, params)
        spoilt.content["arrays"]["0.weight"] = Array("float32", (1, 1), "numpy.ndarray", b"nothing")
        return spoilt
    if how == "mislabelled":
        spoilt = reply(message, params)
        values = Array(params["0.weight"].double().numpy())
        spoilt.content["arrays"]["0.weight"] = Array("float32", values.shape, values.stype, values.data)
        return spoilt
    return None


TYPES = ("float64", "complex64", "float16", "bfloat16", "int32", "bool")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("error", "ValueError: no luck"),
        ("missing entry", "it sent the entries"),
        ("wrong shape", r"0.weight has shape \(2, 2\), not \(1, 1\)"),
        ("not finite", "0.weight has values that are not finite"),
        ("no weight", "num-examples is 0.0"),
        *[(name, f"0.weight has the type {name}, not float32") for name in TYPES],
        ("mislabelled", "0.weight has the type float64, not float32"),
        ("no array", "its arrays cannot be read: "),
        ("silence", "it did not reply"),
    ],
)
def test_an_update_that_is_not_valid_is_left_out_with_its_reason(
    how: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FedAvg(net())
    sent = configure(strategy, Nodes(3, 1), 1)
    params = {client: {key: torch.tensor([[float(client)]]) for key in strategy.global_model} for client in sent}
    replies = [reply(sent[0], params[0]), spoil(sent[1], params[1], how), reply(sent[2], params[2])]
    strategy.aggregate_train(1, [each for each in replies if each is not None])
    assert values(strategy.global_model) == {"0": 1.0, "1": 1.0}
    assert caplog.messages[0].startswith("round 1: client 1 is left out of the average: ")
    assert re.search(reason, caplog.messages[0])


def test_a_reply_that_comes_twice_or_from_a_client_that_was_not_asked_changes_nothing() -> None:
    def averaged(arriving: Sequence[int]) -> dict[str, float]:
        strategy = FedAvg(net(), participation=0.75)
        sent = configure(strategy, nodes := Nodes(4, 1), 1)
        own = {client: {key: torch.tensor([[client + 1.0]]) for key in strategy.global_model} for client in range(4)}
        everybody = {**configure(FedAvg(net()), nodes, 1), **sent}
        replies = [reply(everybody[client], own[client], client + 1.0) for client in arriving]
        for in_order in (True, False):
            received = strategy.receive(1, replies, in_order=in_order)
            assert [update.client for update in received.updates] == sorted(sent)
        strategy.step(1, received)
        return values(strategy.global_model)

    asked = sorted(configure(FedAvg(net(), participation=0.75), Nodes(4, 1), 1))
    [other] = set(range(4)) - set(asked)
    assert averaged([asked[0], *asked, other, asked[2]]) == averaged(asked)


def test_an_error_that_comes_before_the_update_does_not_leave_it_out() -> None:
    strategy = FedAvg(net())
    [sent] = configure(strategy, Nodes(1, 1), 1).values()
    ones = {key: torch.ones(1, 1) for key in strategy.global_model}
    replies = [Message(Error(2, "x"), reply_to=sent), reply(sent, ones), Message(Error(2, "x"), reply_to=sent)]
    received = strategy.receive(1, replies)
    assert not received.left_out
    assert len(received.updates) == 1


def with_set(update: ClientUpdate, **entries: torch.Tensor) -> ClientUpdate:
    return replace(update, sets={"control": entries})


def test_a_set_unlike_most_others_is_left_out_and_the_models_own_kind_wins_a_draw() -> None:
    updates = [with_set(ClientUpdate(k, {}, 1.0), w=torch.ones(1)) for k in range(3)]
    updates[1] = with_set(updates[1], w=torch.ones(1, dtype=torch.complex64))
    described = "its control has w with shape (1,) and type complex64; most clients' has (1,) and float32"
    assert unlike_others(updates, {}) == {1: described}
    doubles = [with_set(updates[0], w=torch.ones(1, dtype=torch.float64)), updates[2]]
    assert set(unlike_others(doubles, {"w": torch.ones(1)})) == {0}
    assert not unlike_others([updates[0], ClientUpdate(1, {}, 1.0), updates[2]], {})


def large(sizes: Iterable[float], **options: object) -> tuple[Received, Strategy]:
    """Return what a strategy receives of clients whose weights are all moved by these sizes."""
    strategy = FedAvg(net(), **options)
    sent = configure(strategy, Nodes(len(list(sizes)), 1), 1)
    moved = [{key: torch.full((1, 1), size) for key in strategy.global_model} for size in sizes]
    return strategy.receive(1, map(reply, sent.values(), moved)), strategy


def test_an_update_that_is_farther_from_where_its_client_began_than_the_limit_is_left_out() -> None:
    received, _ = large([3.0, 3.1, 1e30], max_update_norm=3 * math.sqrt(2))
    assert [update.norm for update in received.updates] == [pytest.approx(3 * math.sqrt(2))]
    assert received.left_out[1].startswith("its update is larger than max_update_norm; its L2 distance from where ")
    assert "is 1.414e+30, the limit 4.24264" in received.left_out[2]
    assert count_kinds(received.left_out.values()) == "its update is larger than max_update_norm (2)"


@pytest.mark.parametrize("largest", [2000.0, 1e30, 3e38])
def test_a_norm_a_thousand_times_the_median_is_said_once(largest: float, caplog: pytest.LogCaptureFixture) -> None:
    received, _ = large([1.0, largest])
    assert not received.left_out
    [line] = caplog.messages
    assert line.startswith("round 1: the norm of the update of client 1 is over 1000 times the median of the round (")
    assert line.endswith("strategy.max_update_norm leaves updates out that are too large")


@pytest.mark.parametrize("sizes", [[1.0, 900.0], [5.0], [0.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
def test_norms_that_do_not_stand_out_are_no_cause_for_a_warning(
    sizes: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    large(sizes)
    assert not caplog.messages


def test_the_norm_is_from_what_a_client_of_its_own_received() -> None:
    class Own(Strategy):
        def for_client(self, server_round: int, client: int) -> Params:
            return {key: torch.full_like(value, 10.0 * client) for key, value in self.global_model.items()}

    strategy = Own(net(), send_initial=False)
    sent = configure(strategy, Nodes(3, 1), 1)
    moved = {key: torch.full((1, 1), 20.0) for key in strategy.global_model}
    received = strategy.receive(1, [reply(message, moved) for message in sent.values()])
    assert [update.norm for update in received.updates] == pytest.approx([20 * math.sqrt(2), 10 * math.sqrt(2), 0])


def test_a_client_that_failed_takes_again_what_it_missed() -> None:
    strategy, grid = FedAvg(net(), send_initial=False), Nodes(2, 1)
    ones = {"0.weight": torch.ones(1, 1), "1.weight": torch.ones(1, 1)}
    strategy.aggregate_train(1, [reply(m, ones) for m in configure(strategy, grid, 1).values()])
    sent = configure(strategy, grid, 2)
    strategy.aggregate_train(2, [reply(sent[0], ones), Message(Error(2, "x"), reply_to=sent[1])])
    assert set(configure(strategy, grid, 3)[1].content["arrays"]) == {"0.weight", "1.weight"}


def test_a_client_that_sends_its_earlier_update_again_takes_next_time_what_it_missed() -> None:
    strategy, grid = LayerCycle(net(), send_initial=False), Nodes(2, 1)
    for server_round in range(1, 4):  # the first layer is averaged, the second, and the first again
        sent = configure(strategy, grid, server_round)
        ones = {key: torch.ones(1, 1) for key in Instructions.read(sent[0].content["config"]).upload}
        replies = [reply(sent[0], ones), reply(sent[1], ones)]
        if server_round == 2:
            replies[1] = Message(Error(2, "x"), reply_to=sent[1])
        elif server_round == 3:
            replies[1].content["config"] = ConfigRecord({"stale": True})
        strategy.aggregate_train(server_round, replies)
    sent = configure(strategy, grid, 4)
    assert set(sent[0].content["arrays"]) == {"0.weight"}
    assert set(sent[1].content["arrays"]) == {"0.weight", "1.weight"}


def test_what_a_client_says_of_its_distance_counts_but_hides_nothing_that_is_not_finite() -> None:
    strategy = FedAvg(net(), max_update_norm=2.0)
    sent = configure(strategy, Nodes(3, 1), 1)
    moved = [{key: torch.full((1, 1), size) for key in strategy.global_model} for size in (5.0, 1.0, math.nan)]
    replies = [reply(message, each) for message, each in zip(sent.values(), moved, strict=True)]
    for each, norm in zip(replies, (1.5, 3.0, 1.0), strict=True):
        each.content["config"] = ConfigRecord({"update-norm": norm})
    received = strategy.receive(1, replies)
    assert [(update.client, update.norm) for update in received.updates] == [(0, 1.5)]
    assert "is 3, the limit 2" in received.left_out[1]
    assert received.left_out[2].endswith("has values that are not finite")


def test_a_round_without_a_valid_update_leaves_the_model_as_it_is() -> None:
    strategy = FedAvg(net())
    sent = configure(strategy, Nodes(2, 1), 1)
    assert strategy.aggregate_train(1, [Message(Error(2, "x"), reply_to=m) for m in sent.values()]) == (None, None)


def test_the_first_message_holds_the_initial_model_where_clients_cannot_build_it() -> None:
    strategy, grid = LayerSet(net(), shared="head"), Nodes(2, 1)
    sent = configure(strategy, grid, 1)
    assert set(sent[0].content["arrays"]) == {"0.weight", "1.weight"}
    strategy.aggregate_train(1, [reply(m, {"1.weight": torch.ones(1, 1)}) for m in sent.values()])
    assert set(configure(strategy, grid, 2)[0].content["arrays"]) == {"1.weight"}


def test_the_local_plan_and_the_probe_reach_the_client() -> None:
    plan = LocalPlan((Phase("head", epochs=2), Phase("body", steps=3, proximal=0.5)))

    class Planned(Strategy):
        def local_plan(self, server_round: int) -> LocalPlan:
            return plan

    sent = configure(Planned(net()), Nodes(1, 1), 5, probe=True)
    instructions = Instructions.read(sent[0].content["config"])
    assert instructions == Instructions(5, ("0.weight", "1.weight"), (), plan, probe=True)


def test_evaluation_sends_what_is_taken_and_the_rest_of_the_global_model() -> None:
    strategy, grid = LayerSet(net(), shared="head", send_initial=False), Nodes(2, 1)
    sent = configure(strategy, grid, 1)
    strategy.aggregate_train(1, [reply(m, {"1.weight": torch.ones(1, 1)}) for m in sent.values()])
    for message in strategy.configure_evaluate(1, strategy.arrays, ConfigRecord(), grid):
        assert set(message.content["arrays"]) == {"1.weight"}
        assert set(message.content["global"]) == {"0.weight"}


def test_evaluation_metrics_are_weighted_by_examples() -> None:
    strategy, grid = FedAvg(net()), Nodes(2, 1)
    configure(strategy, grid, 1)
    replies = []
    for message, (weight, accuracy) in zip(
        strategy.configure_evaluate(1, strategy.arrays, ConfigRecord(), grid), [(1, 1.0), (3, 0.2)], strict=True
    ):
        metrics = MetricRecord({"num-examples": weight, "accuracy": accuracy})
        replies.append(Message(RecordDict({"metrics": metrics}), reply_to=message))
    assert dict(strategy.aggregate_evaluate(1, replies)) == pytest.approx({"accuracy": 0.4})


def test_a_node_stays_the_same_client_when_others_appear() -> None:
    class Growing(Nodes):
        nodes = (50, 70)

        def get_node_ids(self) -> Iterable[int]:
            return self.nodes

    strategy, grid = FedAvg(net(), min_available_nodes=2), Growing(2, 1)
    assert list(configure(strategy, grid, 1)) == [50, 70]
    grid.nodes = (10, 50, 70)
    assert list(configure(strategy, grid, 2)) == [50, 70, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"participation": 0.0}, "participation = 0.0"),
        ({"participation": 1.1}, "1.1"),
        ({"min_available_nodes": 0}, "0"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedAvg(net(), **options)


# Participation.


@pytest.mark.parametrize(
    ("clients", "participation", "count"), [(100, 0.29, 29), (10, 0.01, 1), (7, 0.5, 4), (3, 1.0, 3)]
)
def test_the_number_of_participants_is_rounded_not_cut(clients: int, participation: float, count: int) -> None:
    chosen = draw_participants(0, 1, clients, participation)
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(clients))


def test_participants_are_a_function_of_seed_and_round() -> None:
    draws = [draw_participants(0, server_round, 100, 0.1) for server_round in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]
    assert draws[0] != draw_participants(1, 1, 100, 0.1)


def test_every_client_takes_part_equally_often() -> None:
    counts = torch.zeros(20)
    for server_round in range(2000):
        counts[draw_participants(0, server_round, 20, 0.25)] += 1
    # Binomial: mean 500, standard deviation 19.4.
    assert (counts - 500).abs().max() < 4 * 19.4


def test_an_array_that_did_not_change_is_not_encoded_again() -> None:
    strategy = LayerSet(net(), shared="head")
    configure(strategy, Nodes(1, 1), 1)
    before: dict[str, Array] = dict(strategy.arrays)
    strategy.step(1, Received([ClientUpdate(0, {"1.weight": torch.ones(1, 1)}, 1.0)]))
    assert strategy.arrays["0.weight"] is before["0.weight"]
    assert strategy.arrays["0.weight"].data is before["0.weight"].data
    assert strategy.arrays["1.weight"] is not before["1.weight"]


def test_a_plain_flower_client_may_change_what_it_gets() -> None:
    strategy = FedAvg(net())
    sent = configure(strategy, Nodes(2, 1), 1)
    for value in sent[0].content["arrays"].to_torch_state_dict().values():
        value.fill_(7)
    assert values(strategy.global_model) == {"0": 0.0, "1": 0.0}
    assert values(decode(sent[1].content["arrays"])) == {"0": 0.0, "1": 0.0}


def test_a_tied_tensor_in_a_plain_flower_app_travels_under_its_first_name_only() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(3, 5))
    model[2].weight = model[0].weight
    strategy = Strategy(model)
    sent = list(strategy.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), Nodes(1, 1)))
    assert list(sent[0].content["arrays"]) == ["0.weight", "1.weight", "1.bias", "2.bias"]
    assert "2.weight" not in strategy.arrays


def test_a_key_that_no_client_reads_is_an_error_of_the_config() -> None:
    written = Instructions(1, ("a",), (), LocalPlan()).write()
    assert Instructions.read(written).write() == written
    with pytest.raises(ValueError, match="'lr' in the config of a message is not read by clients"):
        Instructions.read(written | {"lr": 0.5})
