"""Whole runs of asymmetric models: every engine, stopped and resumed, and what they say and leave behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedsim.config import Config
from fedsim.config.experiment_file import read_experiment
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.restored import restored_model
from fedsim.federation.federation import federation_of
from fedsim.models.asymmetry import fixed_entries
from fedsim.models.params import load_state_
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from tests.conftest import run_files

W: dict[str, Any] = {"name": "mlp", "hidden": [12], "initial": "own", "asymmetry": {"kind": "w", "fixed": 4}}
ENGINES: dict[str, dict[str, Any]] = {
    "threads": {"engine__workers": 2},
    "ray": {"engine__name": "ray", "engine__workers": 2},
}
MOMENTUM = {"local__momentum": 0.5, "local__weight_decay": 0.1, "local__optimizer_state": "keep"}


@pytest.mark.parametrize("kind", ["w", "sigma"])
@pytest.mark.parametrize("engine", ["threads", pytest.param("ray", marks=pytest.mark.ray)])
def test_all_engines_give_the_same_files(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], engine: str, kind: str
) -> None:
    settings = {"model": W | {"asymmetry": kind}, "strategy": {"name": "fedper"}, **MOMENTUM}
    assert run_files(play(tiny(**settings, **ENGINES[engine]))) == run_files(play(tiny(**settings), "alone"))


def test_a_resumed_run_has_the_same_files_and_fixed_entries_are_zero_in_all_of_them(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    config = tiny(model=W, rounds=3, strategy={"name": "fedper"}, **MOMENTUM)
    whole, stopped = play(config), RunFolder(tmp_path / "stopped")
    for until in (1, None):
        experiment.run(config, stopped, lambda summary: None, until=until)
    assert run_files(stopped) == run_files(whole)
    fixed, seen = fixed_entries(federation_of(config).model()), set()
    for path in stopped.checkpoints.rglob("*.safetensors"):
        for key, value in load_file(path).items():
            assert not key.endswith((".free", ".fixed"))
            if (own := fixed.get(key.rpartition("/")[2])) is not None and value.shape[-2:] == own.free.shape:
                assert not bool(value[..., own.free == 0].count_nonzero())
                seen.add(key.rpartition("/")[2])
    assert seen == set(fixed)


def test_clients_of_different_initialisation_share_what_is_fixed(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(model=W))
    model, drawn = federation.model(), []
    for client in (0, 1):
        load_state_(model, federation.initial_of(client))
        drawn.append({name: model.get_submodule(name).weight.detach().clone() for name in ("fc1", "fc2")})
    for key, own in fixed_entries(model).items():
        name = key.partition(".")[0]
        assert torch.equal(drawn[0][name] == drawn[1][name], own.free == 0)


def test_the_seed_of_what_is_fixed_is_the_runs_unless_it_has_its_own(tiny: Callable[..., Config]) -> None:
    def drawn(**settings: Any) -> list[torch.Tensor]:
        seed = settings.pop("run", 0)
        config = tiny(seed=seed, model=W | {"asymmetry": {"kind": "w", "fixed": 4, **settings}})
        return [own.fixed for own in fixed_entries(federation_of(config).model()).values()]

    assert not any(map(torch.equal, drawn(), drawn(run=1)))
    assert all(map(torch.equal, drawn(seed=5), drawn(run=1, seed=5)))
    assert all(map(torch.equal, drawn(run=5), drawn(seed=5)))


def test_free_parameters_are_counted_and_weights_travel_whole(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(model=W)
    free = 12 * (64 - 4) + 12 + 10 * (12 - 4) + 10
    assert f"{free} of 910 parameters train ({100 * free / 910:.3g} %), {4 * free:,} of 3,640 bytes" in describe_run(
        config
    )
    standard = tiny(model={key: value for key, value in W.items() if key != "asymmetry"})
    sent = [
        read_result(play(each, name)).communication[["up", "down"]] for each, name in ((config, "w"), (standard, "s"))
    ]
    # Headers of arrays have no keys.
    assert sent[0].sum().equals(sent[1].sum())


def test_a_restored_model_has_plain_weights_that_compute_what_the_run_measured(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(model=W)
    folder = play(config)
    model = restored_model(folder)
    assert set(model.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    federation = federation_of(config)
    inputs, _ = federation.data.test()
    own = federation.model()
    load_state_(own, load_file(sorted(folder.checkpoints.glob("round-*/global.safetensors"))[-1]))
    assert torch.equal(model(inputs), own.eval()(inputs))


class TwoHeads(nn.Module):
    """Adds what two layers make of the hidden units, so that the head must be named."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(shape[-1] ** 2, 12), nn.Linear(12, classes), nn.Linear(12, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.fc(inputs.flatten(1)).relu()
        return self.a(hidden) + self.b(hidden)


def test_the_body_is_what_is_not_the_named_head(tiny: Callable[..., Config]) -> None:
    asymmetry = {"kind": "w", "fixed": {"body": 4}}
    model = {"name": "tests.federation.test_asymmetric_run:TwoHeads", "head": "a | b", "asymmetry": asymmetry}
    federation = federation_of(tiny(model=model))
    assert list(fixed_entries(federation.model())) == ["fc.parametrizations.weight.original"]
    assert federation.layers.head == ("a", "b")


def unweighted(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.AdaptiveAvgPool1d(classes))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"asymmetry": {"fixed": 3}}, "model.asymmetry: fixed is set without a kind; add kind = 'w'"),
        ({"asymmetry": "v"}, "model.asymmetry.kind = .v.: must be 'none', 'w' or 'sigma'"),
        ({"asymmetry": {"kind": "w", "fixed": 1.5}}, "model.asymmetry.fixed = 1.5: must be a share of each output's"),
        ({"asymmetry": {"kind": "w", "fixed": {"fc1": 0}}}, "model.asymmetry.fixed: must be a share of .*; not 0$"),
        ({"asymmetry": {"kind": "w", "fixed": "3"}}, "model.asymmetry.fixed = .3.: must be a share of each"),
        ({"asymmetry": {"kind": "w", "kappa": -1}}, "model.asymmetry.kappa = -1: must be a positive number"),
        ({"asymmetry": {"kind": "w", "fixed": 12}}, r"\[model.asymmetry\] fixed = 12 must be less than the 12 weights"),
        (
            {"name": "tests.federation.test_asymmetric_run:unweighted", "asymmetry": "w"},
            r"\[model.asymmetry\] kind = 'w' fixes entries of linear and convolutional layers, and the model has none",
        ),
    ],
)  # fmt: skip
def test_a_wrong_asymmetry_is_one_line(tiny: Callable[..., Config], model: dict[str, Any], message: str) -> None:
    hidden = {} if "name" in model else {"hidden": [12]}
    with pytest.raises(ConfigError, match=message) as caught:
        federation_of(tiny(model={"name": "mlp"} | hidden | model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('{name = "mlp", asymmetry = "w", adapter = {kind = "lora"}}', "'w' and model.adapter.kind = 'lora' exclude"),
        ('{name = "mlp", asymmetry = {kind = "sigma", fixed = 3}}', "asymmetry.fixed has no effect with kind = 'sig"),
        ('{name = "mlp", asymmetry = {kind = "none", fixed = 3}}', "asymmetry.fixed has no effect with kind = 'none'"),
        ('{name = "mlp", asymmetry = {kind = "none", seed = 3}}', "asymmetry.seed has no effect with kind = 'none'"),
        ('{name = "mlp", asymmetry = {kind = "sigma", kappa = {fc1 = 1}}}', "kappa must be one number with kind"),
    ],
)  # fmt: skip
def test_what_excludes_each_other_is_refused_in_an_experiment(tmp_path: Path, model: str, message: str) -> None:
    path = tmp_path / "e.toml"
    path.write_text(f"rounds = 1\nclients = 2\nmodel = {model}\npartition = {{scheme = 'iid'}}\n")
    with pytest.raises(ConfigError, match=message):
        read_experiment(path)


@pytest.mark.parametrize("kind", ["w", "sigma"])
def test_an_experiment_is_read_back_as_it_was_written(tiny: Callable[..., Config], tmp_path: Path, kind: str) -> None:
    config = tiny(model={"name": "mlp", "asymmetry": kind})
    (tmp_path / "e.toml").write_text(config.to_toml())
    assert read_experiment(tmp_path / "e.toml").config.model.asymmetry == config.model.asymmetry
    assert "asymmetry" not in tiny().to_toml()


def test_barriers_after_matching_are_refused_before_the_run_starts(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"\[barriers\] matching: .*it is asymmetric.*set matching = 'none'"):
        experiment.prepare(tiny(model=W, barriers__matching=["weights"]))
