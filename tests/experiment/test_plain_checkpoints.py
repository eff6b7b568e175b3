"""A run's checkpoint of the global model is a state dict that plain torch loads, strictly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsim.config import Config
from fedsim.experiment import run as experiment
from fedsim.experiment.restored import restored_model
from fedsim.federation.federation import federation_of
from fedsim.models.saved import read_checkpoint
from fedsim.results.folder import RunFolder
from tests.conftest import run_until, unseal
from tests.models import tensors

SETTINGS = {"clients": 2, "barriers__every": 0}


def checkpoint_of(folder: RunFolder, server_round: int) -> Path:
    return folder.checkpoints / f"round-{server_round:05d}" / "global.safetensors"


@pytest.mark.parametrize("name", ["tied", "used_twice", "lazy", "bfloat16_norm"])
def test_plain_torch_loads_the_global_model_strictly(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], name: str
) -> None:
    config = tiny(model={"name": f"tests.models.tensors:{name}"}, **SETTINGS)
    folder = play(config)
    ours, dataset = restored_model(folder).eval(), federation_of(config).data.dataset
    inputs = dataset.normalise(dataset.test.inputs[:5])
    model = getattr(tensors, name)(dataset.shape, len(dataset.classes)).eval()
    model(inputs)  # where it is lazy
    model.load_state_dict(load_file(checkpoint_of(folder, 2)), strict=True)
    assert torch.equal(model(inputs), ours(inputs))
    # fedsim reads it too, each tensor once.
    again = read_checkpoint(checkpoint_of(folder, 2), federation_of(config).model(), name)
    assert len(again) == len({id(value) for value in model.state_dict(keep_vars=True).values()})


@pytest.mark.parametrize("client", [None, 1])
@pytest.mark.parametrize(
    "name", ["tied", "complex_weights", "spectral_norm", "older_spectral_norm", "older_weight_norm", "frozen_base"]
)
def test_a_models_state_loads_into_the_plain_model_strictly(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], name: str, client: int | None
) -> None:
    config = tiny(model={"name": f"tests.models.tensors:{name}"}, **SETTINGS)
    ours, dataset = restored_model(play(config), client), federation_of(config).data.dataset
    inputs = dataset.normalise(dataset.test.inputs[:5])
    model = getattr(tensors, name)(dataset.shape, len(dataset.classes)).eval()
    model.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(model(inputs), ours(inputs))


def test_a_run_resumes_from_a_checkpoint_of_first_names_only(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(model={"name": "tests.models.tensors:used_twice"}, **SETTINGS)
    whole = play(config, "whole")
    stopped = run_until(config, RunFolder(whole.path.parent / "stopped"), 1)
    file = checkpoint_of(stopped, 1)
    older = {key: value for key, value in load_file(file).items() if not key.startswith("part.2")}
    assert len(older) < len(load_file(file))
    save_file(older, file)
    unseal(stopped)
    experiment.run(config, stopped, lambda _: None)
    assert stopped.metrics.read_bytes() == whole.metrics.read_bytes()
    assert checkpoint_of(stopped, 2).read_bytes() == checkpoint_of(whole, 2).read_bytes()
