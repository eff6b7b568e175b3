"""Settings are checked where they enter, and a message names the one that is wrong."""

import inspect
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fedsim.config import Config, read_toml
from fedsim.config.choices import CATALOGUES
from fedsim.config.expectation import Expectation
from fedsim.config.experiment_file import read_experiment
from fedsim.config.tables import ModelConfig
from fedsim.errors import ConfigError
from fedsim.models.architectures.experts import mixtures
from fedsim.options import parameter_texts
from fedsim.training.settings import LocalSettings

TABLES = {
    name: field.annotation for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")
}
VALID: dict[str, Any] = {"rounds": 1, "clients": 2, "partition": {}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local": {"nesterov": True}}, "local.nesterov = true: needs a momentum greater than 0"),
        ({"local": {"lr": 0}}, "local.lr = 0: must be greater than 0"),
        (
            {"barriers": {"precision": "bfloat16"}},
            'barriers.precision = "bfloat16": needs a tolerance; add barriers.tolerance = 0.01',
        ),
        ({"local": {"epochs": 1.0}}, "local.epochs = 1.0: must be a valid integer"),
        ({"local": 3}, "local = 3: must be a table, as in [local] with lr = 0.1"),
        ({"model": "cnn"}, 'model = "cnn": must be a table, as in [model] with name = "cnn"'),
        ({"model": {"adapter": "lora"}}, 'model.adapter = "lora": must be a table, as in [local] with lr = 0.1'),
        ({"seed": [0, 1]}, "seed = [0, 1]: must be a valid integer; to run each of several values, list them in [swe"),
        ({"batch_size": 8}, "unknown key 'batch_size'; did you mean 'local.batch_size'? known are: rounds,"),
        ({"join_ratio": 0.1}, "unknown key 'join_ratio'; did you mean 'participation'? known are: rounds,"),
        ({"local": {"learning_rate": 1}}, "unknown key 'local.learning_rate'; did you mean 'local.lr'? known are: e"),
        ({"deadline": 3}, "unknown key 'deadline'; known are: rounds,"),  # several tables have one
        ({"local": {"mometum": 1}}, "unknown key 'local.mometum'; did you mean 'momentum'? known are: epochs,"),
        (
            {"local": {"optimizer": "adam", "momentum": 0.9}},
            "local.momentum = 0.9: optimizer = 'adam' has no such option; leave it out, or choose 'sgd' ('adam' "
            "has: betas, eps, amsgrad)",
        ),
        (
            {"local": {"betas": [0.5, 0.9]}},
            "local.betas = [0.5, 0.9]: optimizer = 'sgd' has no such option; leave it out, or choose 'adam' or 'adamw'",
        ),
        ({"local": {"optimizer": "adamw", "betas": [0.9, 1]}}, "local.betas.1 = 1: must be less than 1"),
        ({"local": {"optimizer": "adam", "betas": [0.9]}}, "local.betas = [0.9]: must be two numbers, such as [0.9,"),
        ({"local": {"lr_scale": 10}}, "local.lr_scale = 10: must be a table of factors by layer expression, such as {"),
        ({"local": {"clip_norm": 0}}, "local.clip_norm = 0: must be greater than 0"),
        ({"local": {"label_smoothing": 1}}, "local.label_smoothing = 1: must be less than 1"),
        (
            {"loss": {"class_weights": [1.0, 0]}},
            "loss.class_weights = [1.0, 0]: must be 'none', 'balanced', ",
        ),
        (
            {"loss": {"class_weights": "half"}},
            "loss.class_weights = \"half\": must be 'none', 'balanced', ",
        ),
        ({"local": {"lr_scale": {"head": 0}}}, "local.lr_scale.head = 0: must be greater than 0"),
        (
            {"local": {"weight_decay_on": "weights"}},
            "local.weight_decay_on = 'weights': needs a weight_decay greater than 0",
        ),
        ({"local": {"schedule": "step"}}, "local.schedule = 'step': needs step_size, the steps after which gamma"),
        (
            {"local": {"schedule": "cosine", "gamma": 0.5}},
            "local.gamma = 0.5: schedule = 'cosine' has no such option; leave it out, or choose 'step' ('cosine' has: "
            "end_factor)",
        ),
        (
            {"local": {"end_factor": 0.5}},
            "local.end_factor = 0.5: schedule = 'constant' has no such option; leave it out, or choose 'cosine' or "
            "'linear' ('constant' has: none)",
        ),
        ({"local": {"optimizer": "rmsprop"}}, "local.optimizer = \"rmsprop\": must be 'sgd', 'adam' or 'adamw'"),
        ({"partition": {"validation": 0.9}}, "partition.validation = 0.9 and test = 0.2 must add up to less than 1"),
        ({"device": "gpu"}, "device = \"gpu\": must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"),
        ({"expect": [{}]}, "expect.0: must have either barrier or metric or measure"),
    ],
)
def test_a_message_names_the_setting_and_its_rule(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(VALID | settings, "study.toml")
    assert str(caught.value).startswith(f"study.toml: {message}")


TEXT = 'rounds = 3\nname = "ü"\n'


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("\n", "\r\n"), TEXT.replace("\n", "\r"), f"\ufeff{TEXT}"])
def test_a_file_may_begin_with_a_mark_and_end_its_lines_in_any_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.toml").write_bytes(text.encode())
    assert read_toml(tmp_path / "study.toml") == {"rounds": 3, "name": "ü"}


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "is UTF-16 text; save it as UTF-8"),
        ("utf-16-le", "is UTF-16 text; save it as UTF-8"),
        ("utf-16-be", "is UTF-16 text; save it as UTF-8"),
        ("latin-1", r"is not UTF-8 text \(invalid start byte, line 2\); save it as UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_one_line(tmp_path: Path, encoding: str, message: str) -> None:
    (tmp_path / "study.toml").write_bytes(TEXT.encode(encoding))
    with pytest.raises(ConfigError, match=rf"study.toml {message}$"):
        read_toml(tmp_path / "study.toml")


def test_local_settings_are_those_of_sgd_with_its_defaults() -> None:
    local = Config.parse(VALID, "study.toml").local
    assert local.settings == LocalSettings()
    assert set(type(local).model_fields) == {field.name for field in fields(LocalSettings)}


def test_without_a_step_size_adam_has_torchs_also_in_a_sweep_over_optimisers() -> None:
    sweep = {"local.optimizer": ["sgd", "adam", "adamw"]}
    runs = Config.parse(VALID | {"sweep": sweep}, "study.toml").runs("study.toml")
    assert [(run.local.lr, run.local.weight_decay) for run in runs] == [(0.05, 0), (1e-3, 0), (1e-3, 1e-2)]
    given = {"optimizer": "adamw", "lr": 0.05, "weight_decay": 0.0}
    local = Config.parse(VALID | {"local": given}, "study.toml").local
    assert (local.lr, local.weight_decay) == (0.05, 0)
    written = tomllib.loads(runs[2].to_toml())
    assert Config.parse(written, "config.toml").local.settings == runs[2].local.settings


def test_runs_of_a_file_are_below_the_output_directory(tmp_path: Path) -> None:
    path = tmp_path / "...toml"
    path.write_text("rounds = 1\n")
    with pytest.raises(ConfigError, match=r"its runs would be in a folder '\.\.'; rename the file"):
        read_experiment(path)


@pytest.mark.parametrize("record", [*TABLES.values(), Expectation], ids=lambda record: record.__name__)
def test_each_setting_is_described_by_its_name(record: type[BaseModel]) -> None:
    assert parameter_texts(record).keys() == record.model_fields.keys()


def test_each_setting_at_the_top_of_a_file_is_described_by_its_name() -> None:
    assert parameter_texts(Config).keys() == Config.model_fields.keys() - TABLES.keys()


def test_options_that_several_entries_take_are_described_once_and_checked_for_each() -> None:
    models = CATALOGUES["models"]
    taken = list(inspect.signature(mixtures).parameters)[2:]
    described = {name: {each.name: each for each in models.described_options(name)} for name in ("vit", "gpt")}
    for name, options in described.items():
        assert "num_experts" not in (inspect.getdoc(models.find(name)) or "")
        assert list(options)[-len(taken) :] == taken
        assert {each: options[each].text for each in taken} == {each: parameter_texts(mixtures)[each] for each in taken}
        with pytest.raises(ConfigError, match=r"model.num_experts = 2.0: must be a valid integer"):
            models.options(ModelConfig.model_validate({"name": name, "num_experts": 2.0}))
        with pytest.raises(ConfigError, match=r"num_expert.*did you mean 'num_experts'"):
            models.options(ModelConfig.model_validate({"name": name, "num_expert": 2}))
        wrong = rf"^num_expert = 2 is no option of {name}; did you mean 'num_experts'\? known are: [\w, ]*moe_blocks$"
        with pytest.raises(TypeError, match=wrong):
            models.find(name)((8,), 4, num_expert=2)


def test_a_single_name_is_taken_for_several() -> None:
    names = {"groups": "layers", "on": "server", "measures": "spectra", "matching": "weights", "path": "factors"}
    one = Config.parse(VALID | {"barriers": names}, "study.toml")
    assert one == Config.parse(VALID | {"barriers": {key: [name] for key, name in names.items()}}, "study.toml")
    assert one.barriers.matching == ("weights",)
