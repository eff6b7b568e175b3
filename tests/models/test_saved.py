"""Checkpoints of anybody: the weights are found wherever they lie, or one line says what is wrong and what helps."""

import argparse
import json
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.parametrised import parametrise_
from fedsim.models.params import Params, load_state_, state_of
from fedsim.models.saved import read_checkpoint


def net(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, classes))


RIGHT = net(1).state_dict()
OTHER = net(2).state_dict()


def under(prefix: str, state: Params = RIGHT) -> Params:
    return {prefix + key: value for key, value in state.items()}


def wrapped_inside(name: str) -> Params:
    """Return the state dict of a model whose second layer is wrapped."""
    return {re.sub(r"^1\.", f"1.{name}.", key): value for key, value in RIGHT.items()}


METRIC = {"train_accuracy.confmat": torch.zeros(3, 3), "loss_fn.weight": torch.ones(3)}
OPTIMISER = {"state": {0: {"exp_avg": torch.zeros(3, 4), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.0",
    "optimizer_states": [OPTIMISER],
    "hyper_parameters": {"lr": 0.1},
    "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
}
FOUND: dict[str, Any] = {
    "Lightning": LIGHTNING | {"state_dict": under("model.")},
    "Lightning with a criterion and metrics": LIGHTNING | {"state_dict": under("net.") | METRIC},
    "Fabric": {"model": under("_forward_module."), "iteration": 7},
    "net": {"net": RIGHT, "acc": 0.9, "epoch": 3},
    "params": {"params": RIGHT},
    "weights": {"weights": RIGHT},
    "ema alone": {"ema": under("module."), "decay": 0.999},
    "student alone": under("student."),
    "DeepSpeed": {"module": RIGHT, "dp_world_size": 2, "optimizer": None, "ds_config": {}},
    "nested": {"state": {"model": {"weights": RIGHT}}, "optimizer": OPTIMISER},
    "data parallel, compiled": under("module._orig_mod."),
    "compiled, data parallel, in Lightning": {"state_dict": under("model.module._orig_mod.")},
    "FSDP inside": wrapped_inside("_fsdp_wrapped_module"),
    "checkpointed inside": under("model.", wrapped_inside("_checkpoint_wrapped_module")),
    "averaged by torch": {"n_averaged": torch.tensor(5)} | under("module."),
    "ordered": OrderedDict(RIGHT),
    "flat, with numbers": RIGHT | {"epoch": 3},
    "torchvision's reference": {"model": RIGHT, "optimizer": OPTIMISER, "args": argparse.Namespace(lr=0.1)},
    "numbers of NumPy": {"model": RIGHT, "best": np.float64(0.5), "scores": np.arange(3.0)},
    "arrays": {key: value.numpy() for key, value in RIGHT.items()},
    "in a list": {"clients": [RIGHT, RIGHT]},
    "the same twice": {"state_dict": RIGHT, "ema": RIGHT},
    "one model of two that fits": {"student": RIGHT, "teacher": net(2, classes=5).state_dict()},
}


def check(found: Params, expected: Params = RIGHT) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("content", FOUND.values(), ids=FOUND)
def test_the_weights_are_found_wherever_they_lie(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    check(read_checkpoint(tmp_path / "a.ckpt", net(0), "net"))


def test_a_compiled_model_takes_plain_weights(tmp_path: Path) -> None:
    torch.save(RIGHT, tmp_path / "a.pt")
    compiled = nn.Module()
    compiled._orig_mod = net(0)  # as torch.compile does, which takes seconds to import
    check(read_checkpoint(tmp_path / "a.pt", compiled, "net"), under("_orig_mod."))


class Wrapper(nn.Module):
    """Holds the model, as code around a plain one does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"backbone": net(0)})


def test_a_wrapper_takes_the_weights_of_what_it_wraps_and_prefers_its_own(tmp_path: Path) -> None:
    torch.save(RIGHT, tmp_path / "inner.pt")
    torch.save({"model": under("net.backbone."), "backbone": OTHER}, tmp_path / "outer.pt")
    for name in ("inner.pt", "outer.pt"):
        check(read_checkpoint(tmp_path / name, Wrapper(), "wrapper"), under("net.backbone."))


def test_frozen_entries_may_be_missing_and_are_read_where_they_are_there(tmp_path: Path) -> None:
    model = net(0)
    model[0].requires_grad_(False)
    trained = {key: value for key, value in RIGHT.items() if not key.startswith("0.")}
    frozen = {key: value for key, value in model.state_dict().items() if key.startswith("0.")}
    for state in (trained, trained | frozen, RIGHT):
        torch.save(state, tmp_path / "a.pt")
        check(read_checkpoint(tmp_path / "a.pt", model, "net"), {key: state[key] for key in RIGHT if key in state})


class Turned(nn.Module):
    """Has a complex weight, next to one of the older weight normalisation."""

    def __init__(self, older: bool) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.fc = nn.Linear(3, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            (nn.utils.weight_norm if older else nn.utils.parametrizations.weight_norm)(self.fc)


@pytest.mark.parametrize("older", [False, True])
def test_plain_complex_weights_and_weight_norms_are_read_into_their_parametrised_form(
    older: bool, tmp_path: Path
) -> None:
    plain, model = Turned(older), Turned(older=False)
    parametrise_(model)
    torch.save({"model": under("module.", plain.state_dict())}, tmp_path / "a.pt")
    load_state_(model, read_checkpoint(tmp_path / "a.pt", model, "turned"))
    assert torch.equal(model.turn, plain.turn)
    plain.fc(torch.ones(1, 3))  # which computes the weight of the older form
    torch.testing.assert_close(model.fc.weight, plain.fc.weight)


def test_what_is_left_out_and_what_is_converted_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in RIGHT.items()}
    torch.save({"state_dict": under("model.", halves) | METRIC}, tmp_path / "a.ckpt")
    with caplog.at_level(logging.WARNING):
        found = read_checkpoint(tmp_path / "a.ckpt", net(0), "net")
    check(found, {key: value.to(RIGHT[key].dtype) for key, value in halves.items()})
    left_out, converted = (record.getMessage() for record in caplog.records)
    assert "left out 'train_accuracy.confmat', 'loss_fn.weight', not under 'model.'" in left_out
    assert converted.endswith("a.ckpt: converted from bfloat16 to float32")


def test_one_of_several_is_chosen_by_its_name_and_never_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": under("student.") | under("teacher.", OTHER), "swa": {"w": OTHER}}, path)
    message = r"holds 3 sets of weights that fit the model: state_dict/student, state_dict/teacher, swa/w; choose one, "
    with pytest.raises(ConfigError, match=message + r"such as .*a\.ckpt:state_dict/student"):
        read_checkpoint(path, net(0), "net")
    for name, expected in (("student", RIGHT), ("state_dict/teacher", OTHER), ("swa", OTHER)):
        check(read_checkpoint(Path(f"{path}:{name}"), net(0), "net"), expected)
    with pytest.raises(ConfigError, match="the file has no weights called 'ema'"):
        read_checkpoint(Path(f"{path}:ema"), net(0), "net")


def shards(folder: Path) -> Path:
    """Write the weights in two files and an index, as Hugging Face's libraries do."""
    folder.mkdir(exist_ok=True)
    files = {"model-00001-of-00002.safetensors": ["0.weight"], "model-00002-of-00002.safetensors": list(RIGHT)[1:]}
    for file, keys in files.items():
        save_file({key: RIGHT[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def test_shards_are_read_by_their_index_or_their_folder(tmp_path: Path) -> None:
    index = shards(tmp_path / "hub")
    check(read_checkpoint(index, net(0), "net"))
    check(read_checkpoint(index.parent, net(0), "net"))
    (index.parent / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names the shard 'model-00001-of-00002\.safetensors', which is not next"):
        read_checkpoint(index, net(0), "net")


def test_a_folder_with_checkpoints_names_them(tmp_path: Path) -> None:
    torch.save(RIGHT, tmp_path / "b.pt")
    torch.save(RIGHT, tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"is a folder; give one of its files: a\.ckpt, b\.pt"):
        read_checkpoint(tmp_path, net(0), "net")


def test_an_infinite_mask_is_read_and_a_value_that_does_not_fit_is_not(tmp_path: Path) -> None:
    model = net(0)
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    check(read_checkpoint(tmp_path / "a.pt", model, "net"), state_of(model))
    torch.save(RIGHT | {"0.bias": torch.full((3,), 1e6)}, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match=r"'0.bias' has values too large for torch.float16; use a wider type"):
        read_checkpoint(tmp_path / "b.pt", net(0).half(), "net")


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(4, 3), torch.ones(1, 4)), path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "whole model": (
        lambda path: torch.save(nn.Sequential(nn.Linear(4, 3)), path),
        "holds more than tensors (torch.nn.modules.container.Sequential), or is damaged, and code in a file is never "
        "run; save model.state_dict() alone",
    ),
    "other classes": (
        lambda path: torch.save(net(1, classes=10).state_dict(), path),
        "'2.weight' has shape (10, 3) and must be (3, 3), "
        "'2.bias' has shape (10,) and must be (3,), as if for another number of classes; "
        "choose the model and the options that it was",
    ),
    "other width": (
        lambda path: torch.save(RIGHT | {"0.weight": torch.zeros(3, 5)}, path),
        "'0.weight' has shape (3, 5) and must be (3, 4); choose the model",
    ),
    "other names": (
        lambda path: torch.save({key.replace("2.", "head."): value for key, value in RIGHT.items()}, path),
        "it lacks '2.weight', '2.bias' and has 'head.weight', 'head.bias' instead; choose the model",
    ),
    "an adapter": (
        lambda path: torch.save(under("base_model.model.") | {"base_model.model.0.lora_A.weight": torch.ones(1)}, path),
        "'0.lora_A.weight' is of an adapter; merge adapters first",
    ),
    "more under the prefix": (
        lambda path: torch.save(under("model.") | {"model.aux.weight": torch.ones(1)}, path),
        "'aux.weight' is not in the model, which has '0.weight', '0.bias', '1.weight' and 6 more",
    ),
    "complex": (
        lambda path: torch.save(RIGHT | {"0.bias": torch.ones(3, dtype=torch.complex64)}, path),
        "'0.bias' is torch.complex64 and must be torch.float32",
    ),
    "an optimiser alone": (
        lambda path: torch.save({"optimizer": OPTIMISER}, path),
        "it lacks '0.weight', '0.bias', '1.weight' and 5 more",
    ),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_one_line_with_what_helps(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "bad.pt")
    with pytest.raises(ConfigError) as error:
        read_checkpoint(tmp_path / "bad.pt", net(0), "net")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_object_in_a_file_is_made(tmp_path: Path) -> None:
    class Touches:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "flag",)

    content: dict[str, Any] = {"model": RIGHT, "scores": np.array([Touches(), None], dtype=object)}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="code in a file is never run"):
        read_checkpoint(tmp_path / "a.pt", net(0), "net")
    assert not (tmp_path / "flag").exists()
