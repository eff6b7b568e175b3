"""The global model starts from the weights in a file, or one line says why it cannot."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedsim.config import Config, choices, naming
from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation, federation_of
from fedsim.results.folder import RunFolder
from tests.conftest import run_files

State = dict[str, Tensor]


CUSTOM = """
from torch import nn

def with_norm(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, classes))

def with_weights(shape, classes, weights=None):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.constant_(model[1].weight, len(weights or ""))
    return model
"""


@pytest.fixture
def custom_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own_models.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.fixture
def start(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., Federation]:
    """Build a federation whose model starts from what is saved; its one hidden layer has 12 units."""

    def build(content: Any, skip: str = "", part: str = "", **model: Any) -> Federation:
        torch.save(content, tmp_path / "weights.pt")
        settings = {"name": "mlp", "hidden": [12], "weights": f"{tmp_path / 'weights.pt'}{part}", "weights_skip": skip}
        return federation_of(tiny(model=settings | model))

    return build


def state_of(tiny: Callable[..., Config], seed: int = 5, **model: Any) -> State:
    """Return the initial weights of another seed."""
    return federation_of(tiny(seed=seed, model={"name": "mlp", "hidden": [12]} | model)).plain_model().state_dict()


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
def test_the_global_model_starts_from_the_file(
    prefix: str, tiny: Callable[..., Config], start: Callable[..., Federation]
) -> None:
    saved = state_of(tiny)
    assert equal(start({prefix + key: value for key, value in saved.items()}).initial, saved)


def test_one_of_several_sets_of_weights_is_chosen_by_its_name(
    tiny: Callable[..., Config], start: Callable[..., Federation]
) -> None:
    sets = {"model": state_of(tiny, 5), "ema": state_of(tiny, 6)}
    assert equal(start(sets, part=":ema").initial, sets["ema"])
    with pytest.raises(ConfigError, match=r"holds 2 sets of weights that fit the model: model, ema; choose one"):
        start(sets)


def test_frozen_layers_and_statistics_start_from_the_file(
    tiny: Callable[..., Config], custom_models: None, tmp_path: Path
) -> None:
    model = {"name": "own_models:with_norm"}
    saved = federation_of(tiny(seed=5, model=model)).plain_model().state_dict()
    saved["2.running_mean"] += 1
    save_file(saved, tmp_path / "weights.safetensors")
    from_file = {"weights": str(tmp_path / "weights.safetensors"), "freeze": "all - head"}
    federation = federation_of(tiny(model=model | from_file))
    assert federation.layers.names == federation.layers.head
    assert equal(federation.plain_model().state_dict(), saved)


def test_layers_that_are_skipped_start_from_the_seed(
    tiny: Callable[..., Config], start: Callable[..., Federation]
) -> None:
    saved = state_of(tiny)
    drawn = state_of(tiny, seed=0)
    [head] = federation_of(tiny()).layers.head
    saved[f"{head}.weight"], saved[f"{head}.bias"] = torch.zeros(1000, 12), torch.zeros(1000)
    with pytest.raises(ConfigError, match=r"has shape \(1000, 12\) and must be \(10, 12\).* number of classes"):
        start(saved)
    for state in (saved, {key: value for key, value in saved.items() if not key.startswith(head)}):
        initial = start(state, skip="head").initial
        for key, value in initial.items():
            assert torch.equal(value, (drawn if key.startswith(head) else saved)[key])


def test_clients_draw_their_own_skipped_layers_and_factors_and_start_from_the_file_otherwise(
    tiny: Callable[..., Config], start: Callable[..., Federation]
) -> None:
    saved = state_of(tiny)
    [head] = federation_of(tiny()).layers.head
    federation = start(saved, skip="head", initial="own")
    without = federation_of(tiny(model={"name": "mlp", "hidden": [12], "initial": "own"}))
    for client in range(2):
        for key, value in federation.initial_of(client).items():
            assert torch.equal(value, without.initial_of(client)[key] if key.startswith(head) else saved[key])
    adapter = {"kind": "lora", "rank": 2}
    for skip in ("", "head"):
        adapted = start(saved, skip=skip, initial="own", adapter=adapter)
        one, other = (adapted.initial_of(client) for client in range(2))
        differing = {key for key, value in one.items() if not torch.equal(value, other[key])}
        drawn = {key for key in one if key.endswith("lora_A.default.weight") or (skip and key.startswith(head))}
        assert differing == drawn
        assert all(torch.equal(value, saved[key]) for key, value in one.items() if key in saved and key not in drawn)


def test_a_run_from_weights_is_named_by_their_content_and_differs_from_one_without(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    names, files = [], []
    for seed in (5, 6, 5):
        path = tmp_path / f"{len(names)}.pt"
        torch.save(state_of(tiny, seed), path)
        config = choices.resolve(tiny(model={"name": "mlp", "hidden": [12], "weights": str(path)}))
        names.append(naming.run_name(config))
        files.append(run_files(play(config, path.stem)))
    assert names[0] != names[1] != naming.run_name(tiny())
    assert files[0] != files[1]
    # Other bytes of a file may hold the same weights; equal files have equal names wherever they are.
    path.write_bytes((tmp_path / "0.pt").read_bytes())
    assert naming.run_name(config) == names[0]
    assert files[2] == files[0]


def test_weights_that_do_not_fit_are_refused_in_one_line_with_the_first_three(
    tiny: Callable[..., Config], start: Callable[..., Federation]
) -> None:
    saved = state_of(tiny)
    keys = list(saved)
    with pytest.raises(ConfigError, match=rf"it lacks '{keys[0]}', '{keys[1]}', '{keys[2]}'"):
        start({keys[3]: saved[keys[3]]})
    with pytest.raises(ConfigError, match=r"is not in the model, which has"):
        start(saved | {"extra.weight": torch.zeros(2)})
    with pytest.raises(ConfigError, match=r"has shape \(3,\) and must be"):
        start(saved | {keys[1]: torch.zeros(3)})
    first = keys[0].rpartition(".")[0]
    with pytest.raises(ConfigError, match=rf"lacks '{keys[0]}'.*, which model.freeze = '{first}' would keep at random"):
        start({key: value for key, value in saved.items() if not key.startswith(first)}, freeze=first)
    with pytest.raises(ConfigError, match=r"weights_skip = 'hed': .*'hed'.* layers are"):
        start(saved, skip="hed")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"weights": "none.pt"},
            r"model.weights = 'none.pt' does not exist \(looked at /.*none.pt\); correct the path",
        ),
        ({"weights": "."}, r"\. is a folder; give a checkpoint"),
        ({"weights_skip": "head"}, r"weights_skip = 'head' needs weights"),
        ({"weights": "none.pt", "initial": "own"}, r"exclude each other: .* in model.weights_skip, or remove initial"),
        (
            {"weights": "none.pt", "initial": "own", "adapter": {"kind": "ia3", "targets": "fc1"}},
            r"exclude each other: all clients would start from the file's",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    model: dict[str, Any], message: str, tiny: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=message):
        federation_of(tiny(model={"name": "mlp"} | model))


def test_a_custom_model_with_a_parameter_weights_gets_it_itself(
    tiny: Callable[..., Config], custom_models: None
) -> None:
    for given, value in (({}, 0), ({"weights": "none.pt"}, 7), ({"weights": "none.pt", "initial": "own"}, 7)):
        initial = federation_of(choices.resolve(tiny(model={"name": "own_models:with_weights"} | given))).initial
        assert (initial["1.weight"] == value).all()
