"""Flower's own strategies as the rule for the shared layers of a group."""

import copy
import gc
import inspect
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import flwr.serverapp.strategy
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Strategy

from fedsim.config import choices
from fedsim.config.naming import changed_settings, run_name
from fedsim.errors import ConfigError, RunError
from fedsim.strategy import ClientUpdate
from fedsim.strategy.flower_rule import FlowerRule
from fedsim.strategy.flower_table import FLOWER_RULES, NO_RULES
from fedsim.strategy.messages import decode, encode
from tests.strategies.harness import Mlp, Play, assert_close, mean_of, norm_mlp

OPTIONS = {
    "Bulyan": {"num_malicious_nodes": 0},
    "FedAdagrad": {"eta": 0.2, "tau": 0.01},
    "FedAdam": {"eta": 0.2, "beta_1": 0.7, "beta_2": 0.9, "tau": 0.01},
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": 0.8, "server_momentum": 0.6},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.4},
    "FedYogi": {"eta": 0.2, "beta_1": 0.7, "beta_2": 0.9, "tau": 0.01},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
}
SIZES = (5, 8, 3, 6, 4)
every = pytest.mark.parametrize("name", OPTIONS)


def play_of(name: str, **settings: object) -> Play:
    return Play(f"flwr:{name}", {"shared": "body", **OPTIONS[name]}, sizes=SIZES, **settings)


def test_every_strategy_of_flower_is_a_rule_or_has_a_reason_why_not() -> None:
    found = {name: getattr(flwr.serverapp.strategy, name) for name in flwr.serverapp.strategy.__all__}
    strategies = {
        name
        for name, each in found.items()
        if inspect.isclass(each) and issubclass(each, Strategy) and each != Strategy
    }
    assert {name.removeprefix("flwr:") for name in FLOWER_RULES} == set(OPTIONS)
    assert set(OPTIONS) | set(NO_RULES) == strategies


@pytest.fixture
def _few_objects() -> Iterator[None]:
    """Leave little to search to the garbage collection that Bulyan asks for with each array."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@every
@pytest.mark.usefixtures("_few_objects")
def test_the_shared_layers_are_what_flowers_class_makes_of_the_same_arrays(name: str) -> None:
    play = play_of(name)
    flower = getattr(flwr.serverapp.strategy, name)(**OPTIONS[name])
    flower.fraction_train = 0.0
    for server_round in range(1, 4):
        body = {key: value for key, value in play.strategy.global_model.items() if not key.startswith("fc3")}
        flower.configure_train(server_round, encode(body), ConfigRecord(), None)
        play.round(server_round)
        assert len(play.replied) == (4 if server_round == 2 else 5)
        replies = [copy.deepcopy(play.replied[client]) for client in sorted(play.replied)]
        arrays, _ = flower.aggregate_train(server_round, replies)
        assert_close(play.strategy.global_model, {**play.initial, **decode(arrays)}, tolerance=1e-12)


@pytest.mark.slow
@every
def test_a_run_resumes_from_a_checkpoint_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    whole, stopped = play_of(name), play_of(name)
    for server_round in (1, 2, 3):
        whole.round(server_round)
    for server_round in (1, 2):
        stopped.round(server_round)
    stopped.save(tmp_path)
    again = play_of(name)
    again.load(tmp_path, 2)
    assert_close(again.round(3), whole.strategy.global_model, tolerance=0.0)
    assert_close(again.strategy.state(), whole.strategy.state(), tolerance=0.0)
    remembered = {key.partition("/")[0] for key in again.strategy.state()}
    assert remembered <= {"m_t", "v_t", "momentum_vector"}  # and not the global model again


@pytest.mark.slow
@every
def test_integer_buffers_stay_and_variances_stay_positive(name: str) -> None:
    play = Play(f"flwr:{name}", OPTIONS[name], sizes=SIZES, model=norm_mlp)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        if hasattr(play.strategy.flower, "current_arrays"):
            mean = mean_of([play.uploaded(client) for client in there], [SIZES[client] for client in there])
            torch.testing.assert_close(play.strategy.global_model["bn.running_var"], mean["bn.running_var"])
        assert play.strategy.global_model["bn.running_var"].min() > 0
    assert play.strategy.global_model["bn.num_batches_tracked"] == 0


@every
def test_a_float32_model_stays_one(name: str) -> None:
    strategy = FLOWER_RULES[f"flwr:{name}"](Mlp())
    strategy.set_global_model(dict(Mlp().state_dict()))
    updates = [ClientUpdate(client, dict(Mlp().state_dict()), 1.0 + client) for client in range(5)]
    averaged = strategy.aggregate(1, updates)
    assert averaged.keys() == strategy.global_model.keys()
    assert {value.dtype for value in averaged.values()} == {torch.float32}


def test_many_arrays_keep_their_order_in_a_checkpoint() -> None:
    rule = FLOWER_RULES["flwr:FedAvgM"](Mlp(), server_momentum=0.5)
    rule.load_state({f"momentum_vector/list/{k}": torch.tensor(float(k)) for k in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)})
    assert [float(value) for value in rule.flower.momentum_vector] == list(range(11))
    assert list(rule.state()) == [f"momentum_vector/list/{k}" for k in range(11)]


def test_a_rule_of_the_user_is_used_as_it_is_given_and_not_changed() -> None:
    class Largest(FedMedian):
        def aggregate_train(self, server_round, replies):
            arrays = max(replies, key=lambda reply: reply.content["metrics"][self.weighted_by_key]).content["arrays"]
            return arrays, None

    rule = Largest(weighted_by_key="weight")
    strategy = FlowerRule(Mlp(), rule, shared="head")
    strategy.set_global_model(dict(Mlp().state_dict()))
    heads = [{key: v + k for key, v in strategy.global_model.items() if "fc3" in key} for k in range(3)]
    updates = [ClientUpdate(k, heads[k], weight) for k, weight in enumerate((1.0, 9.0, 2.0))]
    assert_close(strategy.aggregate(1, updates), heads[1], tolerance=0.0)
    assert rule.fraction_train == 1.0


def test_a_rule_steps_from_the_global_model_whatever_it_made_before() -> None:
    strategy = FLOWER_RULES["flwr:FedAvgM"](Mlp().double(), server_learning_rate=0.5)
    for value in (0.0, 8.0):  # as after a restart from elsewhere
        strategy.set_global_model({key: torch.full_like(v, value) for key, v in Mlp().double().state_dict().items()})
        update = ClientUpdate(0, {key: v + 2 for key, v in strategy.global_model.items()}, 1.0)
        averaged = strategy.aggregate(1, [update])
        assert_close(averaged, {key: v + 1 for key, v in strategy.global_model.items()}, tolerance=0.0)


def test_flower_says_nothing_of_each_round() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.addHandler(handler)
    try:
        Play("flwr:FedMedian", rounds=1).round(1)
    finally:
        logger.removeHandler(handler)
    assert said == []
    assert logger.level == level


def test_too_few_updates_are_an_error_with_the_rules_name() -> None:
    play = Play("flwr:Bulyan", {"num_malicious_nodes": 1}, absent={})
    with pytest.raises(RunError, match=r"round 1: Flower's Bulyan made nothing of 3 updates; it may need more"):
        play.round(1)
    trimmed = FlowerRule(Mlp(), FedTrimmedAvg(beta=0.4))
    trimmed.set_global_model(dict(Mlp().state_dict()))
    trimmed.flower.beta = 0.5  # which only a rule's own code could do
    updates = [ClientUpdate(k, dict(Mlp().state_dict()), 1.0) for k in range(2)]
    with pytest.raises(RunError, match=r"Flower's FedTrimmedAvg made nothing of 2 updates: .* beta=0.5 is too large"):
        trimmed.aggregate(1, updates)


def test_a_group_without_layers_needs_no_rule() -> None:
    play = Play("flwr:Krum", {"shared": "none"}, rounds=1)
    assert_close(play.round(1), play.initial, tolerance=0.0)


def test_what_is_no_strategy_of_flower_is_rejected() -> None:
    with pytest.raises(TypeError, match="a dict is no Flower strategy that averages arrays"):
        FlowerRule(Mlp(), {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flwr:Krumm", {}, r"strategy.name = 'flwr:Krumm' is unknown; did you mean 'flwr:Krum'\?"),
        ("flwr:QFedAvg", {}, r"strategy.name = 'flwr:QFedAvg' cannot be used: it needs each client's loss"),
        ("flwr:FedProx", {}, "use 'fedprox'"),
        ("flwr:FedTrimmedAvg", {"beta": 0.6}, r"\[strategy\] `beta` must be in the range"),
        (
            "flwr:FedTrimmedAvg",
            {"bta": 0.2},
            r"unknown key 'strategy.bta' for 'flwr:FedTrimmedAvg'; did you mean 'beta'\?",
        ),
        ("flwr:FedAvg", {"fraction_train": 0.5}, "unknown key 'strategy.fraction_train'"),
        ("flwr:FedAdam", {"eta_l": 0.5}, "unknown key 'strategy.eta_l'"),
        ("flwr:Krum", {"num_malicious_nodes": 0.5}, "strategy.num_malicious_nodes = 0.5"),
        ("flwr:Krum", {"shared": "fc9"}, "'fc9' matches nothing"),
    ],
)
def test_bad_names_and_options_are_rejected(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play(name, options)


def test_runs_are_named_by_the_options_that_differ_from_flowers_defaults() -> None:
    def name_of(**options: object) -> str:
        return run_name(Play("flwr:FedTrimmedAvg", options).config)

    assert name_of() == name_of(beta=0.2, shared="all")
    assert len({name_of(), name_of(beta=0.3), name_of(shared="body")}) == 3
    changed = changed_settings(Play("flwr:FedTrimmedAvg", {"beta": 0.3}).config)["strategy"]
    assert changed == {"name": "flwr:FedTrimmedAvg", "beta": 0.3}
    options = choices.CATALOGUES["strategies"].described_options("flwr:FedTrimmedAvg")
    assert [(each.name, each.default) for each in options] == [("beta", "0.2"), ("shared", '"all"')]
    text, source = choices.CATALOGUES["strategies"].describe("flwr:FedMedian")
    assert text == "Average one layer group by Flower's Federated Median (FedMedian) strategy."
    assert source == "arXiv 1803.01498, as in Flower."


def test_flowers_average_is_ours() -> None:
    flower, own = Play("flwr:FedAvg"), Play("full")
    for server_round in flower.rounds():
        assert_close(flower.strategy.global_model, own.round(server_round), tolerance=1e-12)
    assert isinstance(flower.strategy.flower, FedAvg)


@pytest.mark.parametrize("kept", ["record", "tensors", "fixed", "arrays"])
def test_arrays_that_a_rule_keeps_where_no_checkpoint_has_them_are_an_error(kept: str) -> None:
    class Keeps(FedAvg):
        fixed = torch.ones(2)

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            forms = {
                "record": arrays,
                "tensors": arrays.to_torch_state_dict(),
                "fixed": 3,
                "arrays": {key: value.numpy() for key, value in arrays.items()},
            }
            self.before = forms[kept]
            return arrays, metrics

    strategy = FlowerRule(Mlp(), Keeps())
    strategy.set_global_model(dict(Mlp().state_dict()))
    updates = [ClientUpdate(k, dict(Mlp().state_dict()), 1.0) for k in range(2)]
    if kept in ("fixed", "arrays"):
        strategy.aggregate(1, updates)
    else:
        with pytest.raises(
            RunError, match=r"Keeps keeps self.before, an? .* that no checkpoint would have; keep a dict"
        ):
            strategy.aggregate(1, updates)
