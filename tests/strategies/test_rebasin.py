"""Matched averages against plain ones of the same clients, whose units are then in the same places."""

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.symmetries.permutations import permute, random_permutation
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.config import Config
from fedsim.models.params import Params
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result
from fedsim.strategy import ClientUpdate, Received
from fedsim.strategy.messages import sets_of
from strategies import HierarchicalAverage, MatchedAverage
from tests.strategies.agreement import assert_trains_alike
from tests.strategies.harness import CLASSES, FEATURES, Mlp, Play, assert_close, mean_of, moe_mlp, norm_mlp

NAMES = ("matched_average", "hierarchical_average")
PROBES = torch.from_numpy(np.random.default_rng(9).normal(size=(7, FEATURES)))


class ConvNet(nn.Module):
    """Convolutions with a residual connection and groups, between linear layers without a bias and with one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 4, 2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.conv2 = nn.Conv1d(4, 4, 3, padding=1, bias=False)
        self.fc1 = nn.Linear(4 * (FEATURES + 1), 5)
        self.fc2 = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv1(inputs.unsqueeze(1))))
        hidden = hidden + torch.relu(self.conv2(hidden))
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))


def shuffled(play: Play, noise: float = 0.0) -> list[Params]:
    """Return for each client the initial model with its units in other places, and some noise."""
    spec, copies = permutation_spec(play.model, PROBES[:2]), []
    for client in range(len(play.sizes)):
        stream = np.random.default_rng(client + 1)
        copy = permute(play.initial, spec, random_permutation(spec, stream))
        copies.append({key: v + noise * torch.from_numpy(stream.normal(size=v.shape)) for key, v in copy.items()})
    return copies


def pair(
    name: str, options: Mapping[str, Any], plain: Mapping[str, Any] | None = None, **settings: Any
) -> tuple[Play, Play]:
    """Return a play whose clients begin with shuffled copies of the initial model, and a plain one of the same.

    What plain averaging makes of the copies is in ``play.strategy``, if that is plain averaging.
    """
    chosen: dict[str, Any] = {"local": {"lr": 0.02, "batch_size": 3}, **settings}
    matched = Play(name, options, **chosen)
    shared = {key: value for key, value in options.items() if key in ("shared", "buffers")}
    reference = Play("layer_set", {**shared, **(plain or {})}, **chosen)
    begin_shuffled(matched)
    return matched, reference


def begin_shuffled(play: Play, noise: float = 0.0) -> None:
    copies = shuffled(play, noise)
    object.__setattr__(play.federation, "initial_of", lambda client: copies[client])


def outputs(play: Play, params: Params) -> Tensor:
    """Return what a model computes, in evaluation mode."""
    return functional_call(play.model, params, (PROBES,))


def assert_same_functions(play: Play, reference: Play, clients: range) -> None:
    for client in clients:
        found = outputs(play, play.personalised(client))
        torch.testing.assert_close(found, outputs(play, reference.personalised(client)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "model"),
    [
        ("matched_average", {}, norm_mlp),
        ("matched_average", {"matching": "c2m3"}, norm_mlp),
        ("hierarchical_average", {}, ConvNet),
        ("matched_average", {}, moe_mlp),
        ("matched_average", {"matching": "c2m3"}, moe_mlp),
    ],
)
def test_a_run_from_shuffled_copies_is_the_run_from_equal_models(
    name: str, options: Mapping[str, Any], model: Callable[[], nn.Module]
) -> None:
    matched, plain = pair(name, options, model=model)
    shuffled_and_averaged = Play("full", model=model)
    begin_shuffled(shuffled_and_averaged)
    for server_round in matched.rounds():
        expected = outputs(plain, plain.round(server_round))
        found = outputs(matched, matched.strategy.global_model)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    shuffled_and_averaged.round(1)
    assert not torch.allclose(
        outputs(plain, shuffled_and_averaged.strategy.global_model), outputs(plain, plain.round(1)), atol=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shared", "buffers", "model"),
    [
        ("matched_average", "body", "shared", Mlp),
        ("hierarchical_average", "head", "shared", norm_mlp),
        ("matched_average", "fc1 | fc3", "shared", Mlp),
        ("hierarchical_average", "!norm", "shared", norm_mlp),
        ("matched_average", "all", "personal", norm_mlp),
        ("hierarchical_average", "norm | fc1", "shared", ConvNet),
        ("matched_average", "all - *.experts.*", "shared", moe_mlp),
        ("hierarchical_average", "fc1 | *.experts.up", "shared", moe_mlp),
    ],
)
def test_what_a_client_keeps_follows_what_it_shares(
    name: str, shared: str, buffers: str, model: Callable[[], nn.Module]
) -> None:
    """Client 2 comes back after two rounds."""
    options = {"shared": shared, "buffers": buffers}
    matched, plain = pair(name, options, model=model, rounds=4, absent={2: 2, 3: 2})
    for server_round in matched.rounds():
        plain.round(server_round)
        assert_same_functions(matched, plain, range(3))
        moved = {client for client in range(3) if matched.strategy.sets_for(server_round + 1, client)}
        # In the places of client 1, which has the most examples; from then on in those of the global model.
        assert moved == {1: {0, 2}, 2: {2}, 3: {2}, 4: set()}[server_round]


def test_a_merge_that_was_followed_is_not_followed_again() -> None:
    """The reply of a client gets lost once it has trained, so that the orders of the merge before are sent again."""
    plays = pair("matched_average", {"shared": "body"}, rounds=4, absent={})
    for play in plays:
        play.round(1)
        asked = play.strategy.configure_train(2, play.strategy.arrays, ConfigRecord(), play.engine)
        replies = [reply for reply in play.engine.send_and_receive(asked) if reply.metadata.src_node_id != 2]
        play.strategy.step(2, play.strategy.receive(2, replies))
        play.played = 2
    matched, plain = plays
    assert matched.strategy.sets_for(3, 2)
    for server_round in (3, 4):
        assert_same_functions(*plays, range(3))
        matched.round(server_round)
        plain.round(server_round)
    assert_same_functions(*plays, range(3))


def test_orders_travel_only_where_units_of_a_clients_own_layers_have_moved() -> None:
    matched, _ = pair("matched_average", {"shared": "fc2"}, rounds=3, absent={})
    matched.round(1)
    matched.round(2)
    sets = {client: sets_of(matched.sent[client].content) for client in range(3)}
    # The units of fc1 and of fc2: what belongs to them in fc1 and fc3 stays with the client.
    assert [sorted(len(order.numpy()) for order in sets[client]["permutation"].values()) for client in (0, 2)] == [
        [5, 6]
    ] * 2
    assert {str(array.dtype) for array in sets[0]["permutation"].values()} == {"int32"}
    assert sets[1] == {}
    assert all(not sets_of(matched.replied[client].content) for client in range(3))
    matched.round(3)
    assert all(not sets_of(matched.sent[client].content) for client in range(3))
    together = Play("matched_average", {"shared": "fc2"}, absent={})
    for _ in together.rounds():
        assert all(not sets_of(message.content) for message in together.sent.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_first_merge_is_in_the_places_of_the_client_with_the_most_examples(name: str) -> None:
    matched = Play(name, sizes=(4, 8, 3, 8, 2), local={"lr": 1e-30}, absent={})
    begin_shuffled(matched)
    assert_close(matched.round(1), shuffled(matched)[1], 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_later_merge_is_in_the_places_of_the_global_model(name: str) -> None:
    play = Play(name, absent={})
    merged = play.round(1)
    spec, stream = permutation_spec(play.model, PROBES[:2]), np.random.default_rng(0)
    copies = [permute(merged, spec, random_permutation(spec, stream)) for _ in range(3)]
    play.strategy.step(2, Received([ClientUpdate(client, copy, 1.0) for client, copy in enumerate(copies)]))
    assert_close(play.strategy.global_model, merged, 1e-12)


class WithPositions(nn.Module):
    """Tokens with fixed positions, which are a buffer of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(2, 6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("positions", torch.arange(12.0).sin().view(2, 6))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs.unflatten(1, (2, 2))) + self.positions
        return self.head((x + self.down(torch.tanh(self.up(x)))).mean(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_one_model_computes_what_it_does_also_next_to_buffers_that_stay(name: str) -> None:
    play = Play(name, model=WithPositions)
    play.round(1)
    own = {key: torch.randn_like(value) for key, value in play.strategy.global_model.items() if key != "positions"}
    play.strategy.step(2, Received([ClientUpdate(0, own, 1.0)]))
    merged = play.strategy.global_model
    assert not torch.equal(merged["up.weight"], own["up.weight"])
    expected = outputs(play, {**merged, **own})
    assert_close({"outputs": outputs(play, merged)}, {"outputs": expected}, 1e-10)


def test_without_matching_it_is_plain_averaging_bit_by_bit() -> None:
    matched = Play("matched_average", {"matching": "none"}, model=norm_mlp)
    plain = Play("full", model=norm_mlp)
    for server_round in matched.rounds():
        assert_close(matched.strategy.global_model, plain.round(server_round), 0)


@pytest.mark.parametrize(
    ("order", "sizes"), [("given", (5, 8, 3)), ("nearest", (5, 8, 3, 4)), ("random", (5, 8, 3, 4, 2))]
)
def test_pairs_of_pairs_count_by_their_examples(order: str, sizes: tuple[int, ...]) -> None:
    matched, plain = pair("hierarchical_average", {"order": order}, sizes=sizes, rounds=2)
    for server_round in matched.rounds():
        expected = outputs(plain, plain.round(server_round))
        torch.testing.assert_close(outputs(matched, matched.strategy.global_model), expected, rtol=1e-9, atol=1e-9)


def test_options_decide_how_models_are_matched_that_differ() -> None:
    found = []
    for name, options in (
        ("matched_average", {}),
        ("matched_average", {"sweeps": 1}),
        ("matched_average", {"matching": "c2m3"}),
        ("matched_average", {"matching": "c2m3", "sweeps": 1}),
        *(("hierarchical_average", {"order": order}) for order in ("given", "nearest", "random")),
    ):
        play = Play(name, options, sizes=(4, 4, 5, 4, 3), rounds=1, absent={})
        begin_shuffled(play, noise=1.0)
        found.append(play.round(1)["fc2.weight"])
    for one, other in combinations(found, 2):
        assert not torch.allclose(one, other)


def test_a_run_resumes_from_its_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    whole, resumed = (pair("matched_average", {"shared": "body"}, model=norm_mlp, absent={2: 2})[0] for _ in range(2))
    whole.round(1)
    whole.round(2)
    whole.save(tmp_path)
    resumed.load(tmp_path, 2)
    assert resumed.strategy.sets_for(3, 2)
    assert_close(resumed.strategy.state(), whole.strategy.state(), 0)
    assert_close(resumed.personalised(2), whole.personalised(2), 0)
    assert_close(resumed.round(3), whole.round(3), 0)


def test_a_cohort_trains_as_one_client_after_the_other() -> None:
    alone, together = (pair("matched_average", {"shared": "body"}, rounds=4, cohort=cohort)[0] for cohort in (1, 3))
    assert_trains_alike(alone, together, range(3))


def repaired(repair: str, model: Callable[[], nn.Module]) -> tuple[Play, list[Params], list[float]]:
    """Play a round of clients with shuffled copies; return the play, their models in one order, and their shares."""
    matched, plain = pair("matched_average", {"repair": repair}, {"name": "full"}, model=model, sizes=(5, 8, 3))
    matched.round(1)
    plain.round(1)
    spec = permutation_spec(matched.model, PROBES[:2])
    places = random_permutation(spec, np.random.default_rng(2))  # of client 1
    members = [permute(plain.uploaded(client), spec, places) for client in range(3)]
    return matched, members, [size / 16 for size in (5, 8, 3)]


def preactivations(play: Play, params: Params) -> list[Tensor]:
    """Return what comes out of the layers before the non-linearities, for the server's inputs."""
    inputs = play.federation.calibration()
    first = functional_call(nn.Linear(1, 1), {"weight": params["fc1.weight"], "bias": params["fc1.bias"]}, (inputs,))
    if "bn.weight" in params:
        centred = (first - params["bn.running_mean"]) / (params["bn.running_var"] + 1e-5).sqrt()
        first = centred * params["bn.weight"] + params["bn.bias"]
    return [first, torch.tanh(first) @ params["fc2.weight"].T + params["fc2.bias"]]


@pytest.mark.parametrize(
    ("repair", "model"), [("repair", Mlp), ("rescale", Mlp), ("repair", norm_mlp), ("reshift", norm_mlp)]
)
def test_channels_get_back_the_moments_of_the_clients(repair: str, model: Callable[[], nn.Module]) -> None:
    play, members, shares = repaired(repair, model)
    found = preactivations(play, play.strategy.global_model)
    goals = [preactivations(play, member) for member in members]
    for layer, values in enumerate(found):
        mean = sum(share * goal[layer].mean(0) for share, goal in zip(shares, goals, strict=True))
        std = sum(share * goal[layer].std(0, correction=0) for share, goal in zip(shares, goals, strict=True))
        is_mean = torch.allclose(values.mean(0), mean, rtol=1e-9)
        is_std = torch.allclose(values.std(0, correction=0), std, rtol=1e-9)
        # The mean of a linear function of the inputs is that of the clients' already.
        assert (is_mean, is_std) == (repair != "rescale" or (layer, model) == (0, Mlp), repair != "reshift")


def test_running_statistics_are_those_of_the_average_on_the_servers_inputs() -> None:
    play, members, shares = repaired("reset", norm_mlp)
    merged, mean = play.strategy.global_model, mean_of(members, shares)
    values = play.federation.calibration() @ mean["fc1.weight"].T + mean["fc1.bias"]
    expected = {**mean, "bn.running_mean": values.mean(0), "bn.running_var": values.var(0)}
    assert_close({key: merged[key] for key in expected}, expected, 1e-9)


def test_biases_keep_up_with_the_depth() -> None:
    play, members, shares = repaired("biases", Mlp)
    expected = mean_of(members, shares)
    for depth, key in enumerate(("fc1.bias", "fc2.bias", "fc3.bias"), start=1):
        expected[key] = sum(share**depth * member[key] for share, member in zip(shares, members, strict=True))
    assert_close(play.strategy.global_model, expected, 1e-9)


def test_weights_get_back_the_variance_that_clients_have_without_inputs_and_in_a_part_of_the_model() -> None:
    options = {"matching": "none", "repair": "variance", "shared": "body"}
    corrected = Play("matched_average", options, sizes=(5, 8, 3))
    plain = Play("layer_set", {"shared": "body"}, sizes=(5, 8, 3))
    corrected.round(1)
    plain.round(1)
    assert MatchedAverage(Mlp(), **options).inputs is None
    for key in plain.uploaded(0):
        value, members = plain.strategy.global_model[key], [plain.uploaded(client)[key] for client in range(3)]
        goal = sum(n / 16 * each.var(correction=0) for n, each in zip((5, 8, 3), members, strict=True))
        factor = ((goal + 1e-4) / (value.var(correction=0) + 1e-4)).sqrt()
        expected = value.mean() + factor * (value - value.mean())
        torch.testing.assert_close(corrected.strategy.global_model[key], expected, rtol=1e-12, atol=1e-15)


def test_models_that_start_apart_are_better_averaged_once_they_are_matched(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    settings = {
        "clients": 2,
        "rounds": 1,
        "partition": {"scheme": "iid"},
        "model": {"name": "mlp", "hidden": [32], "initial": "own"},
        "local": {"epochs": 8, "lr": 0.3, "batch_size": 16},
        "barriers": {"every": 0},
    }
    losses = {}
    for name in ("full", *NAMES):
        result = read_result(play(tiny(**settings, strategy={"name": name}), name))
        losses[name] = float(result.on_server("global", "loss")[1])
    assert all(losses[name] < 0.7 * losses["full"] for name in NAMES), losses


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"inputs": None}, "MatchedAverage traces the model .* pass inputs="),
        ({"sweeps": 0}, "sweeps = 0 must be at least 1"),
        ({"matching": "none", "sweeps": 5}, "matching = 'none' moves no units; leave out sweeps and symmetries"),
        ({"matching": "none", "symmetries": "rotations"}, "matching = 'none' moves no units"),
        ({"shared": "bodi"}, "layer pattern 'bodi' matches nothing"),
        ({"shared": "body", "repair": "repair"}, "repair = 'repair' needs whole models, and shared = 'body'"),
        ({"buffers": "personal", "repair": "reset"}, "buffers = 'personal' keep a part with the clients"),
        ({"repair": "reset"}, "repair = 'reset' needs running statistics and the model has none"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(options: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        MatchedAverage(Mlp().double(), **{"inputs": PROBES, **options})
    assert "\n" not in str(error.value)


def test_without_matching_no_inputs_are_needed() -> None:
    assert MatchedAverage(Mlp(), matching="none").inputs is None
    with pytest.raises(ValueError, match="HierarchicalAverage traces the model"):
        HierarchicalAverage(Mlp())


class Branching(Mlp):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (2.0 if bool(inputs.sum() > 0) else 1.0)


@pytest.mark.parametrize(
    ("strategy", "options", "problem"),
    [
        *(
            (strategy, {}, "model = Branching cannot be traced .*; to leave .* matching = 'none' .of matched_average")
            for strategy in (MatchedAverage, HierarchicalAverage)
        ),
        *(
            (MatchedAverage, {"matching": "none", "repair": repair}, f"repair = '{repair}': .* with repair = 'none'$")
            for repair in ("repair", "rescale", "reshift", "biases")
        ),
    ],
)
def test_a_model_that_cannot_be_traced_is_refused_before_the_first_round(
    strategy: Callable[..., Any], options: Mapping[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        strategy(Branching().double(), inputs=PROBES, **options)
    assert "\n" not in str(error.value)
