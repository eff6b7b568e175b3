"""The entries of a settled model are those that torch finds, also after the model has changed."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedsim.models.entries import entries_of
from fedsim.models.layers import describe_
from fedsim.models.params import load_state_, state_of


def settled(model: nn.Module) -> nn.Module:
    describe_(model, torch.ones(2, 3))
    return model


def net() -> nn.Module:
    return settled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval())


def new_parameter_(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(torch.full((4, 3), 7.0))


def new_module_(model: nn.Module) -> None:
    model[2] = nn.Linear(4, 2)


def new_buffer_(model: nn.Module) -> None:
    model[1].running_mean = torch.full((4,), 7.0)


@pytest.mark.parametrize("change_", [new_parameter_, new_module_, new_buffer_])
def test_entries_follow_a_model_that_changes(change_: Callable[[nn.Module], None]) -> None:
    model = net()
    before = entries_of(model)
    assert entries_of(model) is before
    change_(model)
    found = state_of(model)
    assert found.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value)
    load_state_(model, {key: torch.ones_like(value) for key, value in found.items()})
    assert all((value == 1).all() for value in model.state_dict().values())


def test_a_model_that_its_layers_refer_to_is_freed_and_its_copy_has_entries_of_its_own() -> None:
    model = net()
    vars(model[0])["owner"] = model
    entries_of(model)
    other = copy.deepcopy(model)
    assert all(entries_of(other)[key] is value for key, value in other.state_dict(keep_vars=True).items())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Doubled(nn.Linear):
    """Saves and loads twice its weight."""

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = 2 * destination[f"{prefix}weight"]


def with_hook() -> nn.Module:
    model = net()
    model[0].register_load_state_dict_pre_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("make", [with_hook, lambda: settled(nn.Sequential(nn.Linear(3, 3), Doubled(3, 2)))])
def test_a_module_that_loads_in_its_own_way_is_left_to_torch(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert entries_of(model) is None
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state_of(model).items())


def test_a_tied_tensor_has_one_entry_and_a_wrong_shape_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    settled(model)
    assert list(state_of(model)) == ["0.weight", "0.bias", "1.bias"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_state_(model, state_of(model) | {"0.bias": torch.ones(5)})
    with pytest.raises(KeyError):
        load_state_(model, {"0.weight": torch.ones(3, 3)})
