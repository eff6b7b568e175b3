"""Layers that are averaged while their barrier, or their drift, allows it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import torch

from fedsim.config import Config
from fedsim.errors import ConfigError, RunError
from fedsim.experiment import rounds
from fedsim.experiment.measuring.wanted import client_barriers, wanted_barriers
from fedsim.federation.data import ClientData
from fedsim.federation.federation import federation_of
from fedsim.models.params import Params, load_state_
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import ClientBarrier, ClientUpdate, Measurable, bounds_of
from fedsim.strategy.probes import without_probe
from fedsim.training.evaluation import evaluate
from strategies import BarrierGated
from tests.conftest import run_files
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of

GATED = {"name": "barrier_gated", "every": 2, "threshold": 0.17, "confidence": 0.5}


def gated(**options: object) -> BarrierGated:
    strategy = BarrierGated(
        Mlp(), **{"every": 1, "measure": "barrier", "threshold": 1.0, "confidence": 0.5, "probe": False} | options
    )
    strategy.set_global_model(dict(Mlp().state_dict()))
    return strategy


def decide(strategy: BarrierGated, server_round: int, *barriers: float) -> tuple[str, ...]:
    """Let a round with these barriers pass; return the layers that are averaged in a round without a measurement."""
    measured = [[ClientBarrier(0, value, 1.0, 5)] for value in barriers]
    strategy.take_barriers(server_round, dict(zip(("fc1", "fc2", "fc3"), measured, strict=True)))
    values = {key: value.detach() for key, value in Mlp().state_dict().items()}
    strategy.aggregate(server_round, [ClientUpdate(0, values, 1.0)])
    strategy.every = 10**6
    shared = strategy.shared(2).layers
    strategy.every = 1
    return shared


def layer_of(key: str) -> str:
    return key.partition(".")[0]


def drift_of(name: str, models: list[Params], mean: Params, sizes: Sequence[int]) -> float:
    """Return the spread of a layer around its mean, over the norm of the mean."""

    def flat(model: Params) -> np.ndarray:
        return np.concatenate([model[f"{name}.{kind}"].numpy().ravel() for kind in ("weight", "bias")])

    spread = np.average([((flat(model) - flat(mean)) ** 2).sum() for model in models], weights=sizes)
    return float(np.sqrt(spread) / np.linalg.norm(flat(mean)))


def test_layers_close_above_the_threshold_and_open_below_it_with_hysteresis() -> None:
    strategy = gated(hysteresis=0.2)
    assert decide(strategy, 1, 1.1, 1.3, 0.9) == ("fc1", "fc3")  # 1.1 is within the hysteresis
    assert decide(strategy, 2, 1.1, 0.9, 0.9) == ("fc1", "fc3")  # 0.9 is not low enough to open again
    assert decide(strategy, 3, 1.3, 0.7, 0.9) == ("fc2", "fc3")
    assert decide(strategy, 4, 1.0, 0.7, math.inf) == ("fc2",)


def test_the_budget_takes_the_layers_with_the_lowest_barriers_first() -> None:
    sizes = {name: 4 * sum(p.numel() for p in getattr(Mlp(), name).parameters()) for name in ("fc1", "fc2", "fc3")}
    whole = sum(sizes.values())
    assert decide(gated(budget=1.0), 1, 0.1, 0.2, 0.3) == ("fc1", "fc2", "fc3")
    assert decide(gated(budget=(sizes["fc2"] + sizes["fc3"]) / whole), 1, 0.3, 0.2, 0.1) == ("fc2", "fc3")
    # fc2 does not fit into what fc3 leaves, but the smaller fc1 does.
    assert sizes["fc1"] < sizes["fc2"]
    assert decide(gated(budget=(sizes["fc1"] + sizes["fc3"]) / whole), 1, 0.3, 0.2, 0.1) == ("fc1", "fc3")


def test_a_measurement_is_asked_for_when_it_is_due_and_all_that_it_needs_travels() -> None:
    strategy = gated(every=3, among="fc1 | fc3", examples=7)
    assert [strategy.measurable(r) is not None for r in range(1, 8)] == [True, False, False, True, False, False, True]
    wanted = strategy.measurable(1)
    assert isinstance(wanted, Measurable)
    assert (wanted.on, wanted.layers.layers, wanted.examples) == ("clients", ("fc1", "fc3"), 7)
    assert strategy.shared(1).layers == ("fc1", "fc3")
    # On the server whole models are evaluated, so that also layers that are never averaged must get there.
    on_server = gated(every=3, among="fc1 | fc3", on="server")
    assert on_server.shared(1).layers == ("fc1", "fc2", "fc3")
    assert on_server.kept(1).layers == ("fc2",)
    assert gated(measure="drift").measurable(1) is None


def test_drift_is_the_spread_around_the_average_over_the_averages_norm() -> None:
    play = Play("barrier_gated", {"measure": "drift", "every": 1, "threshold": 1e9}, absent={})
    play.round(1)
    updates = play.received.updates
    models, sizes = [update.shared for update in updates], [update.num_examples for update in updates]
    for position, name in enumerate(("fc1", "fc2", "fc3")):
        spread = drift_of(name, models, mean_of(models, sizes), sizes)
        assert play.strategy.state()["values"][position].item() == pytest.approx(spread, abs=1e-12)


def test_with_a_threshold_that_nothing_reaches_it_is_fedavg_and_below_everything_local_training() -> None:
    plays = {
        name: Play(of, options)
        for name, of, options in (
            ("open", "barrier_gated", {"measure": "drift", "threshold": 1e9}),
            ("full", "full", {}),
            ("closed", "barrier_gated", {"measure": "drift", "threshold": -1.0, "every": 1}),
        )
    }
    for server_round in (1, 2, 3):
        for play in plays.values():
            play.round(server_round)
    full, closed = plays["full"].strategy.global_model, plays["closed"].strategy.global_model
    for key, value in plays["open"].strategy.global_model.items():
        assert torch.equal(value, full[key])
        assert not torch.equal(closed[key], full[key])
    # All were averaged in the first round, and none since.
    first = Play("full")
    first.round(1)
    assert all(torch.equal(closed[key], value) for key, value in first.strategy.global_model.items())


@pytest.fixture
def folder(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> RunFolder:
    return play(tiny(rounds=3, strategy=GATED | {"examples": 6}, barriers={"every": 0}))


@pytest.mark.parametrize(("threshold", "server_round"), [(0.17, 1), (-9.0, 3)])
def test_the_barriers_of_a_run_are_those_of_mixed_models_on_each_clients_validation_data(
    threshold: float,
    server_round: int,
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = GATED | {"examples": 6, "threshold": threshold}
    config = tiny(rounds=server_round, strategy=options, barriers={"every": 0})
    federation, uploaded = federation_of(config), {}

    def keep(own, updates, *rest):
        uploaded.update({update.client: update for update in updates})
        return wanted_barriers(own, updates, *rest)

    monkeypatch.setattr(rounds, "wanted_barriers", keep)
    folder = play(config)
    table = pd.read_parquet(folder.measured("gate", server_round))
    total = sum(update.num_examples for update in uploaded.values())
    # Where all layers are closed the models are the probes, which began at the average.
    is_probe = server_round == 3
    assert all(bool(update.measured) == is_probe for update in uploaded.values())
    states = {client: dict(each.measured if is_probe else each.shared) for client, each in uploaded.items()}
    model = federation.model()
    for client, state in states.items():
        inputs, targets = (values[:6] for values in federation.data.client(client).validation)
        load_state_(model, state)
        own = evaluate(model, inputs, targets).loss
        for layer in ("fc1", "fc2"):
            mixed = dict(state)
            for key in (f"{layer}.weight", f"{layer}.bias"):
                mixed[key] = sum(uploaded[k].num_examples / total * states[k][key] for k in states)
            load_state_(model, mixed)
            row = table.query("layer == @layer and client == @client")
            assert row["barrier"].item() == pytest.approx(evaluate(model, inputs, targets).loss - own, abs=1e-5)
            assert row["n"].item() == len(targets)
    if is_probe:  # what it costs: the closed layers down, all layers of the probe up, and another training
        traffic = read_rows(folder.communication)
        size = 4 * (64 * 12 + 12 + 12 * 10 + 10)
        probes = traffic[traffic["set"] == "probed"].groupby(["round", "client"])[["down", "up"]].sum()
        assert set(probes.index) == {(3, client) for client in states}
        assert set(probes["down"]) == set(probes["up"]) == {size}
        passes = read_rows(folder.metrics).query("metric == 'backward_examples'").groupby("round")["value"].sum()
        assert passes[3] == 2 * passes[1] == 2 * passes[2]


def test_closed_layers_are_measured_and_reopened_on_the_path_that_begins_at_the_average() -> None:
    limit, names = 0.042, ("fc1", "fc2", "fc3")
    options = {"measure": "drift", "every": 2, "threshold": limit}
    play = Play("barrier_gated", options, rounds=5, sizes=(5, 8, 4), absent={}, local={"epochs": 1})
    own, path = dict.fromkeys(range(3), play.initial), play.initial  # path: the average that probes begin at
    is_open, states = dict.fromkeys(names, True), []
    for server_round in play.rounds():
        probing = server_round % 2 == 1 and not all(is_open.values())
        probes = {}
        for client in range(3):
            stream, before = play.training_stream(server_round, client), own[client]
            own[client] = descend(play.model, before, play.batches(server_round, client, stream=stream), 0.1)
            if probing:
                started = {key: before[key] if is_open[layer_of(key)] else path[key] for key in path}
                probes[client] = descend(play.model, started, play.batches(server_round, client, stream=stream), 0.1)
        measured = list((probes or own).values())
        mean, of_measured = mean_of(list(own.values()), play.sizes), mean_of(measured, play.sizes)
        taken = {key: value for key, value in mean.items() if is_open[layer_of(key)]}
        if server_round % 2 == 1:
            path = of_measured
            now = {name: drift_of(name, measured, path, play.sizes) <= limit for name in names}
            opened = [name for name in names if now[name] and not is_open[name]]
            taken |= {key: value for key, value in path.items() if layer_of(key) in opened}
            is_open = now
        own = {client: {**model, **taken} for client, model in own.items()}
        states.append(tuple(is_open.values()))
        for client in range(3):
            assert_close(play.personalised(client), own[client])
    assert len(set(states)) == 3, states  # a layer closes, and opens again


def test_bounds_are_students_and_a_layer_changes_only_where_they_show_it() -> None:
    values = [0.3, 0.1, 0.7, 0.2]
    equal = [ClientBarrier(client, value, 5.0, 9) for client, value in enumerate(values)]
    found = bounds_of(equal, 0.9)
    interval = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.8)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    # A client that counts twice moves the mean, and adds to the error by its share squared.
    weighted = bounds_of([each._replace(weight=1.0 + (each.client == 2)) for each in equal], 0.9)
    assert weighted.mean == pytest.approx(0.4)
    error = math.sqrt(4 / 3 * (0.1**2 + 0.3**2 + 4 * 0.3**2 + 0.2**2) / 25)
    assert weighted.high - 0.4 == pytest.approx(scipy.stats.t.ppf(0.9, 3) * error, abs=1e-12)
    assert bounds_of(equal[:1], 0.9) == (-math.inf, 0.3, math.inf)
    strategy = gated(confidence=0.9, threshold=found.mean)
    for shift, expected in ((0.0, True), (0.5, False), (0.0, False), (-0.5, True)):
        moved = [each._replace(nats=each.nats + shift) for each in equal]
        strategy.take_barriers(1, dict.fromkeys(("fc1", "fc2", "fc3"), moved))
        strategy.aggregate(1, [ClientUpdate(0, dict(Mlp().state_dict()), 1.0)])
        assert strategy.memory["open"].tolist() == [expected] * 3


def test_what_the_measurement_costs_is_counted(folder: RunFolder) -> None:
    traffic = read_rows(folder.communication)
    gate = traffic[traffic["set"] == "barriers"]
    assert set(gate["round"]) == {1, 3}
    size = {"fc1": 4 * (64 * 12 + 12), "fc2": 4 * (12 * 10 + 10)}
    assert all(row["down"] == size[row["layer"]] and row["up"] == 8 for row in gate.to_dict("records"))
    metrics = read_rows(folder.metrics).query("split == 'train'")
    forward, backward = (
        metrics[metrics["metric"] == f"{way}_examples"].set_index(["round", "client"])["value"]
        for way in ("forward", "backward")
    )
    n = pd.read_parquet(folder.measured("gate", 1)).groupby("client")["n"].first()
    assert ((forward - backward).loc[2] == 0).all()
    assert (forward - backward).loc[1].to_dict() == (3 * n).to_dict()  # each client's own model, and two mixed ones


def test_the_gate_decides_what_travels_in_the_next_round(folder: RunFolder) -> None:
    table = pd.read_parquet(folder.measured("gate", 1))
    means = {name: np.average(rows["barrier"], weights=rows["weight"]) for name, rows in table.groupby("layer")}
    assert min(means.values()) < GATED["threshold"] < max(means.values())
    sent = read_rows(folder.communication).query("round == 2 and up > 0")
    assert set(sent["layer"]) == {name for name, value in means.items() if value <= GATED["threshold"]}


def test_a_killed_run_continues_with_the_gate_that_it_had(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(rounds=4, strategy=GATED | {"on": "server"}, barriers={"every": 0})
    whole = run_files(play(config))
    play(tiny(rounds=2, strategy=GATED | {"on": "server"}, barriers={"every": 0}), "part")
    assert run_files(play(config, "part")) == whole


def test_without_validation_data_there_is_nothing_to_measure_on(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    config = tiny(strategy=GATED, partition={"scheme": "iid", "validation": 0.0})
    with pytest.raises(ConfigError, match=r"no client has any; set partition.validation to more than 0"):
        play(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_layers_that_nobody_can_measure_stay_as_they_are_with_their_place_in_the_budget() -> None:
    for confidence in (0.5, 0.9):
        strategy = gated(confidence=confidence)
        values = {key: value.detach() for key, value in Mlp().state_dict().items()}
        for measured in (
            {"fc1": [5.0, 5.0], "fc2": [0.3, 0.3], "fc3": [0.2, 0.2]},
            {"fc1": [], "fc2": [], "fc3": [0.4] * 2},
        ):
            of_clients = {
                name: [ClientBarrier(k, v, 1.0, 5) for k, v in enumerate(own)] for name, own in measured.items()
            }
            strategy.take_barriers(1, of_clients)
            strategy.aggregate(1, [ClientUpdate(0, values, 1.0)])
        assert strategy.memory["open"].tolist() == [False, True, True]
        assert strategy.memory["values"].tolist() == [5.0, 0.3, 0.4]


def test_a_round_whose_clients_have_no_validation_data_closes_nothing(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With one of many small clients in a round, that one may have none, while others have some.
    monkeypatch.setattr(ClientData, "validation", property(lambda self: tuple(part[:0] for part in self.train)))
    for on in ("clients", "server"):
        gate = Measurable(on, BarrierGated(Mlp()).layers.group("all"), 5)
        federation = federation_of(tiny(strategy=GATED))
        table = wanted_barriers(federation, [], gate, 1)
        assert list(table) == ["layer", "client", "barrier", "weight", "n"]
        found = client_barriers(table, gate)
        assert list(found.values()) == [[], [], []]
    folder = play(tiny(rounds=2, strategy=GATED, barriers={"every": 0}))
    assert not folder.measured_files("gate")
    sent = read_rows(folder.communication).query("up > 0")
    assert all(set(rows["layer"]) == {"fc1", "fc2"} for _, rows in sent.groupby("round"))
    assert set(sent["round"]) == {1, 2}


def test_in_an_app_that_measures_no_barriers_the_remedy_is_said() -> None:
    strategy = gated()
    with pytest.raises(RunError, match="use measure = 'drift'"):
        strategy.aggregate(1, [ClientUpdate(0, dict(Mlp().state_dict()), 1.0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.4}, "confidence = 0.4 must be at least 0.5"),
        ({"hysteresis": -0.1}, "hysteresis = -0.1 must be at least 0"),
        ({"budget": 0.0}, "budget = 0.0 must be greater than 0"),
        ({"every": 0}, "every = 0 must be at least 1"),
        ({"examples": 0}, "examples = 0 must be at least 1"),
        ({"among": "none"}, "among = 'none' holds no layer"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated(**options)


def test_a_reply_without_a_probe_is_left_out_where_others_have_one() -> None:
    updates = [ClientUpdate(0, {}, 1, sets={"probed": {}}), ClientUpdate(1, {}, 1)]
    assert without_probe(updates) == {1: "its reply has no probe, so it is of an earlier round"}
    assert without_probe(updates[1:]) == {}
