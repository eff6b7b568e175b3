"""Whole runs of models with frozen layers, on every engine, killed and resumed, and their files."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.dry_run import describe_run
from fedsim.federation.federation import federation_of
from fedsim.models.frozen import frozen_of
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from tests.conftest import run_files, unseal

FROZEN = {"body.weight", "body.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}


class Partly(nn.Module):
    """A frozen body with a frozen normalisation, a layer of which only the bias trains, and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(64, 12), nn.BatchNorm1d(12)
        self.tuned, self.head = nn.Linear(12, 12), nn.Linear(12, classes)
        for module in (self.body, self.norm):
            module.requires_grad_(False)
        self.tuned.weight.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.tuned(self.norm(self.body(inputs.flatten(1))).relu()).relu())


def partly(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Partly(classes)


class Codebook(nn.Module):
    """Moves a parameter that is not trained while it runs, as moving averages do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head, self.codes = nn.Linear(64, classes), nn.Parameter(torch.ones(64), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.flatten(1)
        if self.training:
            self.codes.data.lerp_(inputs.mean(0), 0.1)
        return self.head(inputs * self.codes)


def codebook(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Codebook(classes)


MODEL = {"name": "tests.federation.test_frozen_run:partly"}
ENGINES: dict[str, dict[str, Any]] = {
    "local": {},
    "threads": {"engine__workers": 2},
    "cohort": {"engine__cohort": 4},
    "ray": {"engine__name": "ray", "engine__workers": 2},
}


@pytest.mark.parametrize("engine", ["threads", "cohort", pytest.param("ray", marks=pytest.mark.ray)])
def test_no_file_of_a_run_holds_a_frozen_tensor_and_all_engines_agree(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], engine: str
) -> None:
    settings = {"model": MODEL, "strategy": {"name": "fedper"}, "local__optimizer_state": "keep"}
    alone = play(tiny(**settings, local__momentum=0.5), "alone")
    folder = play(tiny(**settings, local__momentum=0.5, **ENGINES[engine]))
    for path in folder.checkpoints.rglob("*.safetensors"):
        assert not {key.rpartition("/")[2] for key in load_file(path)} & {*FROZEN, "tuned.weight"}
    assert {*load_file(next(folder.checkpoints.glob("round-*/global.safetensors")))} == {
        "tuned.bias", "head.weight", "head.bias",
    }  # fmt: skip
    layers = read_result(folder).communication["layer"].unique()
    assert list(layers) == ["tuned"]
    if engine != "cohort":  # which agrees to float tolerance
        assert run_files(folder) == run_files(alone)


def test_barriers_skip_frozen_layers(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    result = read_result(play(tiny(model=MODEL)))
    assert set(result.measured("barriers")["group"]) == {"tuned", "head", "full"}


def test_threads_share_one_copy_and_a_client_with_a_start_of_its_own_has_the_servers_frozen_layers(
    tiny: Callable[..., Config],
) -> None:
    federation = federation_of(tiny(model={**MODEL, "initial": "own"}))
    before = {key: value.clone() for key, value in federation.frozen().items()}
    assert frozen_of(federation.model())["body.weight"] is federation.frozen()["body.weight"]
    assert federation.initial_of(1).keys() == federation.initial.keys() == {"tuned.bias", "head.weight", "head.bias"}
    assert not torch.equal(federation.initial_of(1)["head.weight"], federation.initial["head.weight"])
    assert all(torch.equal(value, before[key]) for key, value in federation.frozen().items())


def test_what_a_run_asks_its_model_leaves_frozen_statistics_as_they_are(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(model=MODEL))
    before = {key: value.clone() for key, value in federation.frozen().items()}
    assert not federation.draws_while_training()
    assert all(torch.equal(value, before[key]) for key, value in federation.frozen().items())


def test_only_a_copy_with_its_own_frozen_tensors_is_moved_to_the_cpu(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federation_of(tiny(model=MODEL))
    shared = {id(value) for value in federation.frozen().values()}
    moved: list[nn.Module] = []

    def cpu(module: nn.Module) -> nn.Module:
        moved.append(module)
        return module.to("cpu")

    monkeypatch.setattr(nn.Module, "cpu", cpu)
    federation.draws_while_training()
    assert moved
    assert not shared & {id(value) for module in moved for value in module.state_dict(keep_vars=True).values()}


def test_a_frozen_parameter_that_the_forward_pass_changes_is_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"changes 'codes' in its forward pass, though it is frozen, .* buffer"):
        federation_of(tiny(model={"name": "tests.federation.test_frozen_run:codebook"}))


def test_parts_of_a_built_in_model_can_be_frozen(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    config = tiny(model={"name": "mlp", "hidden": [12, 12], "freeze": "first:2"})
    text = describe_run(config)
    assert "130 of 1,066 parameters train (12.2 %), 520 of 4,264 bytes" in text
    assert "frozen: fc1, fc2" in text
    assert list(read_result(play(config)).communication["layer"].unique()) == ["fc3"]
    with pytest.raises(ConfigError, match=r"model.name = 'mlp': layer pattern 'fc9' matches nothing; layers are: fc1"):
        federation_of(tiny(model={"name": "mlp", "freeze": "fc9"}))
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        federation_of(tiny(model={"name": "mlp", "freeze": "all"}))
    with pytest.raises(ConfigError, match=r"shared = 'fc1' .*|layer pattern 'fc1' matches only frozen layers"):
        experiment.prepare(
            tiny(model={"name": "mlp", "freeze": "fc1"}, strategy={"name": "layer_set", "shared": "fc1"})
        )


def test_a_run_whose_layers_have_other_names_now_is_refused(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(model=MODEL, rounds=1)
    folder = unseal(play(config))
    whole = run_files(folder)
    folder.model.unlink()  # as an earlier version has left it
    longer = config.model_copy(update={"rounds": 2})
    with pytest.raises(
        ConfigError, match=r"was written by fedsim .*, which named the model's layers differently \(body, "
    ):
        experiment.run(longer, folder, lambda summary: None)
    assert {name: value for name, value in whole.items() if name != "model.json"} == run_files(folder)
    plain = unseal(play(tiny(rounds=1), "plain"))
    plain.model.unlink()  # its layers follow each other as they were registered
    experiment.run(tiny(rounds=1), plain, lambda summary: None)
    shutil.rmtree(plain.path)
