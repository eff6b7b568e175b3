"""A dry run describes each method without training anything."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.errors import ConfigError
from fedsim.experiment.dry_run import describe_run
from tests.strategies.harness import ADAPTED, FOLLOWS_FROM_TRAINING

MIXED = """
from torch import nn

class Mixed(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(64, classes).double()

    def forward(self, inputs):
        return self.head(inputs.flatten(1).double()).float()
"""
NOTED = """
from fedsim.strategy import ClientRule, Strategy

class Rule(ClientRule):
    def finish(self, local, started):
        return super().finish(local, started)

class Noted(Strategy):
    client_rule = Rule

class Planned(Noted):
    def planned_sets(self, server_round, client):
        return {"note": (8, 0)}
"""
MIXING = """
from fedsim.strategy import Strategy
from strategies.scaffold import Scaffold

class Mixing(Strategy):
    def for_client(self, server_round, client):
        return self.memory["mixed"][str(client)] if server_round > 1 else super().for_client(server_round, client)

    def shared_by(self, server_round, client):
        return self.layers.group(self.memory["sent"][str(client)]) if server_round > 1 else self.shared(server_round)

    def aggregate(self, server_round, updates):
        return self.average(updates)

class Known(Mixing):
    def planned_layers(self, server_round, client):
        return self.layers.names[client % 2 :]

class Inherited(Known):
    pass

class Half(Known):
    def for_client(self, server_round, client):
        return {}

class More(Scaffold):
    def sets_for(self, server_round, client):
        return super().sets_for(server_round, client) | {"more": {}}
"""
OPTIONS = {"layer_set": {"shared": "body"}, "ccvr": {"after": 1}}


@pytest.mark.parametrize("name", [name for name in CATALOGUES["strategies"].entries if name not in ADAPTED])
def test_a_dry_run_describes_every_strategy(name: str, tiny: Callable[..., Config]) -> None:
    server = {"data__server_examples": 5} if name == "fedlaw" else {}
    text = describe_run(tiny(strategy={"name": name, **OPTIONS.get(name, {})}, **server))
    assert "in all rounds: " in text
    assert "from round 1: " in text
    assert ("not known before the run: " in text) == (name in FOLLOWS_FROM_TRAINING)
    assert "not counted: parameter sets" not in text


def test_sets_of_a_method_that_does_not_plan_them_are_reported_as_not_counted(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "noted.py").write_text(NOTED)
    monkeypatch.syspath_prepend(tmp_path)
    for name, unknown in (("noted:Noted", True), ("noted:Planned", False)):
        text = describe_run(tiny(strategy={"name": name}))
        assert ("not counted: parameter sets" in text) == unknown
        assert ("each: note (8 bytes up, 0 down)" in text) != unknown


def test_what_the_users_own_hooks_send_is_not_asked_for_before_the_run(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mixing.py").write_text(MIXING)
    monkeypatch.syspath_prepend(tmp_path)
    fc1, fc2 = (64 * 12 + 12) * 4, (12 * 10 + 10) * 4
    up = f"in all rounds: at most {3 * 4 * (fc1 + fc2):,} bytes up"
    for name in ("Mixing", "Half"):
        text = describe_run(tiny(rounds=3, strategy={"name": f"mixing:{name}"}))
        assert f"{up}\nnot known before the run: the bytes down" in text
    for name in ("Known", "Inherited"):  # odd clients take the second layer only
        text = describe_run(tiny(rounds=3, strategy={"name": f"mixing:{name}"}))
        assert f"{up}, at most {3 * 2 * (fc1 + 2 * fc2):,} bytes down\n" in text
        assert "not known" not in text
    assert "not counted: parameter sets" in describe_run(tiny(strategy={"name": "mixing:More"}))


def test_failures_that_the_config_asks_for_are_not_in_the_bytes(tiny: Callable[..., Config]) -> None:
    assert re.search(r"in all rounds: .* down, if no client fails\n", describe_run(tiny(faults={"crash": 0.3})))


def test_stacks_that_only_clients_of_the_round_before_take_are_counted(tiny: Callable[..., Config]) -> None:
    # Two of four clients a round, factors of rank 2 of a layer from 64 to 12 and a head from 12 to 10.
    model = {"name": "mlp", "hidden": [12], "adapter": {"kind": "lora", "rank": 2, "targets": "fc1"}}
    text = describe_run(tiny(rounds=3, participation=0.5, model=model, strategy={"name": "flora"}))
    stack = 2 * 2 * (64 + 12) * 4
    assert re.search(rf"from round \d: and their sets, each: .*stack \(0 bytes up, {stack:,} down\)", text)


def test_sets_whose_sizes_are_known_are_counted(tiny: Callable[..., Config]) -> None:
    # Ten means of twelve features of 4 bytes, and ten counts of 8; from the second round on they come back.
    size = 10 * 12 * 4 + 10 * 8
    text = describe_run(tiny(rounds=3, strategy={"name": "fedproto"}))
    assert f"from round 1: and their sets, each: class_means ({size} bytes up, 0 down)" in text
    assert f"from round 2: and their sets, each: class_means ({size} bytes up, {size} down)" in text
    assert f"in all rounds: {3 * 4 * size:,} bytes up, {2 * 4 * size:,} bytes down" in text


def test_bytes_are_those_of_the_layers_that_are_averaged_since_a_client_took_part(tiny: Callable[..., Config]) -> None:
    # fc1 has 64 x 12 weights and 12 biases of 4 bytes, fc2 12 x 10 and 10; all four clients take part in each round.
    fc1, fc2 = (64 * 12 + 12) * 4, (12 * 10 + 10) * 4
    whole = describe_run(tiny(rounds=3))
    assert f"in all rounds: {3 * 4 * (fc1 + fc2):,} bytes up, {2 * 4 * (fc1 + fc2):,} bytes down" in whole
    head = describe_run(tiny(rounds=3, strategy={"name": "layer_set", "shared": "head"}))
    assert f"from round 1: 4 clients send {fc2:,} bytes each: fc2" in head
    assert f"in all rounds: {3 * 4 * fc2:,} bytes up, {2 * 4 * fc2:,} bytes down" in head


def test_the_optimiser_and_its_schedule_are_one_line(tiny: Callable[..., Config]) -> None:
    assert "# training\nsgd: lr 0.1, float32\n" in describe_run(tiny())
    local = {"optimizer": "adamw", "lr": 0.01, "batch_size": 16, "schedule": "cosine", "warmup": 3}
    text = describe_run(tiny(rounds=3, local=local))
    [line] = [line for line in text.splitlines() if line.startswith("adamw: lr 0.01, by cosine over the run")]
    # Client 0 has 3 batches in each of 3 rounds.
    last = 0.01 * (1 + math.cos(math.pi * 5 / 6)) / 2
    assert line.endswith(
        f"after 3 steps of warm-up (client 0: 0.0025 in its first step, {last:.3g} in its last), float32"
    )


def test_a_warm_up_that_is_longer_than_a_clients_training_is_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(
        ConfigError, match=r"local\.warmup = 50 must be less than the \d+ steps that client \d takes in all"
    ):
        describe_run(tiny(local={"warmup": 50}))
    with pytest.raises(ConfigError, match=r"local\.warmup = 9 .* takes in a round, the most of all; use fewer"):
        describe_run(tiny(local={"warmup": 9, "schedule": "linear", "schedule_over": "round"}))
    text = describe_run(tiny(rounds=3, local={"batch_size": 16, "warmup": 6}))
    assert (
        "1 of 4 clients do not complete the warm-up of local.warmup = 6 steps, as client 1, which takes 6 in all"
        in text
    )


def test_bfloat16_is_refused_where_autocast_leaves_types_as_they_are_and_said_to_gain_nothing_elsewhere(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = {"lr": 0.1, "precision": "bfloat16"}
    (tmp_path / "mixed.py").write_text(MIXED)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"'bfloat16' needs a model of float32, and its tensor head\.\w+ is of float64"
    ):
        describe_run(tiny(model={"name": "mixed:Mixed"}, local=local))
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has, "avx2": True})
        text = describe_run(tiny(local=local))
        assert "\nsgd: lr 0.1, bfloat16 by autocast\n" in text
        assert ("local.precision = 'bfloat16' gains nothing: cpu has no instructions for it" in text) == (not has)
