"""Settings on the command line: texts need no quotes, and what TOML can read means what it does in a file."""

import re
from typing import Any

import pytest

from fedsim.config import Config, parse_assignment
from fedsim.config.assignments import parse_assignments
from fedsim.config.experiment_file import read_experiment
from fedsim.errors import ConfigError

VALUES: dict[str, Any] = {
    "strategy.name=fedprox": "fedprox",
    'strategy.name="fedprox"': "fedprox",
    "strategy.name='fedprox'": "fedprox",
    "strategy.name = LG-FedAvg ": "LG-FedAvg",
    "strategy.shared=all": "all",
    "strategy.shared=conv1 | head": "conv1 | head",
    "strategy.shared=!norm": "!norm",
    "strategy.shared=first:2": "first:2",
    "data.name=digits": "digits",
    "data.path=C:\\new\\table.csv": "C:\\new\\table.csv",
    "partition.path=~/my data/split.npz": "~/my data/split.npz",
    "device=cuda:1": "cuda:1",
    "barriers.every=auto": "auto",
    "barriers.every=3": 3,
    "rounds=12": 12,
    "local.lr=1e-3": 0.001,
    "data.flip=true": True,
    # A setting that holds a text only, whatever the text looks like.
    "strategy.name=true": "true",
    "model.head=1": "1",
    "data.name=2024-01-01": "2024-01-01",
    # Lists of texts, and of values of another setting.
    "barriers.groups=[full, conv1 | head]": ["full", "conv1 | head"],
    "barriers.on=clients": ["clients"],
    'barriers.on="clients"': ["clients"],
    "barriers.on=server,clients": ["server", "clients"],
    'barriers.groups=["a,b"]': ["a,b"],
    "sweep.seed=[0,1]": [0, 1],
    "sweep.strategy.name=[full,FedPer]": ["full", "FedPer"],
    "sweep.data.name=[digits, 1]": ["digits", "1"],
    "sweep.data.name=[1, 1e3]": ["1", "1e3"],
    'barriers.groups=["a, b", 1]': ["a, b", "1"],
    "barriers.groups=1": ["1"],
    'sweep.strategy=[{name="full"}]': [{"name": "full"}],
    "tune.local.lr=[0.1, 0.01]": [0.1, 0.01],
    "tune.metric=loss": "loss",
}


@pytest.mark.parametrize(("text", "value"), VALUES.items(), ids=VALUES)
def test_a_value_is_read_as_toml_or_as_a_text(text: str, value: Any) -> None:
    found = parse_assignment(text)[1]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["sweep.strategy.name=[a]", 'sweep."strategy.name"=[a]'])
def test_a_setting_that_is_swept_needs_no_quotes_either(text: str) -> None:
    assert parse_assignment(text)[0] == ("sweep", "strategy.name")


WRONG = {
    "strategy.name=": "has no value; an empty text is --set strategy.name='\"\"'",
    'strategy.name="abc': "is not a TOML value; close it",
    "sweep.seed=[0, 1": "is not a TOML value; close it",
    "sweep.strategy=[{name=full}]": "'{name=full}' in the list is not a TOML value; put texts in quotes",
    "strategy.name=a\nb": "is not a TOML value",
    "strategy.name=\x1b[1m": "is not a TOML value",
    "rounds=1\nclients=2": "is not a TOML value",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=map(repr, WRONG))
def test_what_is_neither_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_assignment(text)
    assert str(caught.value).isprintable()


def test_a_text_where_a_number_belongs_is_named_with_the_rule() -> None:
    path, value = parse_assignment("rounds=ten")
    with pytest.raises(ConfigError, match='rounds = "ten": must be a valid integer'):
        Config.parse({path[0]: value, "clients": 2, "partition": {"scheme": "iid"}}, "study.toml")


TABLE = {"rounds": 1, "clients": 2, "partition": {"scheme": "iid"}, "strategy": {"name": "layer_set"}}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("strategy.shared=1", ["1"]),
        ("strategy.shared=1e3", ["1e3"]),
        ("strategy.shared=true", ["true"]),
        ("sweep.strategy.shared=[1, conv1]", ["1", "conv1"]),
        ("sweep.strategy.shared=[1, 2]", ["1", "2"]),
    ],
)
def test_an_option_that_holds_a_text_is_one_whatever_it_looks_like(text: str, values: list[str]) -> None:
    changes, as_texts = parse_assignments([text])
    configs = read_experiment(TABLE, changes, as_texts=as_texts).configs()
    assert [config.strategy.options["shared"] for config in configs] == values


def test_a_number_of_another_option_stays_one() -> None:
    changes, as_texts = parse_assignments(["strategy.name=fedprox", "strategy.mu=1", "model.hidden=[7]"])
    config = read_experiment(TABLE | {"model": {"name": "mlp"}}, changes, as_texts=as_texts).configs()[0]
    assert (config.strategy.options["mu"], config.model.options["hidden"]) == (1, (7,))


def test_a_change_has_the_last_word_over_whole_tables_of_a_sweep() -> None:
    sweep = {"strategy": [{"name": "layer_set"}, {"name": "layer_set", "shared": "body"}, {"name": "full"}]}
    configs = read_experiment(TABLE | {"sweep": sweep}, {("strategy", "buffers"): "personal"}).configs()
    assert [config.strategy.buffers for config in configs] == ["personal"] * 3
    configs = read_experiment(TABLE | {"sweep": sweep}, {("strategy", "name"): "layer_set"}).configs()
    assert [config.strategy.options["shared"] for config in configs] == ["all", "body"]
