"""Settings are checked where they enter, and a message names the one that is wrong."""

from dataclasses import fields
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.training.sgd import SGD

VALID: dict[str, Any] = {"rounds": 1, "clients": 2, "partition": {}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local": {"nesterov": True}}, "local.nesterov = true: needs a momentum greater than 0"),
        ({"local": {"lr": 0}}, "local.lr = 0: must be greater than 0"),
        ({"local": {"epochs": 1.0}}, "local.epochs = 1.0: must be a valid integer"),
        ({"local": 3}, "local = 3: must be a table, as in [local] with lr = 0.1"),
        ({"local": {"mometum": 1}}, "unknown key 'local.mometum'; did you mean 'momentum'? known are: epochs,"),
        ({"partition": {"validation": 0.9}}, "partition.validation = 0.9 and test = 0.2 must add up to less than 1"),
        ({"device": "gpu"}, "device = \"gpu\": must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"),
        ({"expect": [{}]}, "expect.0: must have either barrier or metric or measure"),
    ],
)
def test_a_message_names_the_setting_and_its_rule(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(VALID | settings, "study.toml")
    assert str(caught.value).startswith(f"study.toml: {message}")


def test_local_settings_are_those_of_sgd_with_its_defaults() -> None:
    local = Config.parse(VALID, "study.toml").local
    assert isinstance(local, SGD)
    assert {field.name: getattr(local, field.name) for field in fields(local)} == vars(SGD())
