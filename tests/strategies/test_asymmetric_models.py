"""The law of fixed entries, over the table: what trains of an asymmetric weight is 0 there, wherever it goes."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.models.asymmetry import Asymmetry, asymmetrise_, fixed_entries
from fedsim.models.params import Params, flatten
from fedsim.strategy import messages
from strategies import STRATEGIES
from tests.strategies.harness import ADAPTED, FEATURES, Mlp, Play
from tests.strategies.test_laws import OPTIONS, PLAIN, records_of

MOMENTUM = {"momentum": 0.5, "weight_decay": 0.1, "optimizer_state": "keep"}
ALIGNED = ("matched_average", "hierarchical_average", *PLAIN)  # methods that put units into the same places
LINEAR_HEAD = ("ccvr", "fedrod", "feddbe", "fedproto", "fedpac", "fedcp")  # which they use by its plain weight


def asymmetric_mlp(layers: str = "all - norm") -> nn.Module:
    """Layers ``fc1``, ``bn``, ``fc2`` and the head ``fc3``; half of each output's weights are fixed in some."""
    model = Mlp(norm=True).double()
    asymmetrise_(model, Asymmetry(fixed={layers: 0.5}), 3, torch.ones(2, FEATURES, dtype=torch.float64))
    return model


def play_of(name: str, layers: str = "all - norm", **settings: Any) -> Play:
    local = {"epochs": 1, **({} if STRATEGIES[name].client_rule.plain_sgd else MOMENTUM)}
    model = partial(asymmetric_mlp, layers)
    return Play(name, OPTIONS.get(name, {}), sizes=(5, 8, 4), model=model, local=local, **settings)


def is_zero(value: Tensor) -> bool:
    return bool((value == 0).all()) and not bool(value.signbit().any())


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in (*ALIGNED, *ADAPTED)])
def test_fixed_entries_are_zero_bit_for_bit_in_all_that_moves(name: str) -> None:
    play = play_of(name, "body" if name in LINEAR_HEAD else "all - norm", rounds=3 if name == "ccvr" else 2)
    fixed = copy.deepcopy(fixed_entries(play.federation.model()))
    assert len(fixed) == (2 if name in LINEAR_HEAD else 3)
    for _ in play.rounds():
        seen: list[Params] = [
            messages.decode(each) for reply in play.replied.values() for each in records_of(reply).values()
        ]
        seen += [play.strategy.global_model, *(play.personalised(client) for client in range(3))]
        found = [(path, value) for part in seen for path, value in flatten(part).items()]
        held = [(path, value) for path, value in found if path.rpartition("/")[2] in fixed]
        assert held
        for path, value in held:
            assert is_zero(value[..., fixed[path.rpartition("/")[2]].free == 0]), path
        assert not any(path.endswith((".free", ".fixed")) for path, _ in found)
    for key, own in fixed_entries(play.federation.model()).items():
        assert torch.equal(own.free, fixed[key].free)
        assert torch.equal(own.fixed, fixed[key].fixed)


@pytest.mark.parametrize("name", ALIGNED)
def test_a_method_that_aligns_units_says_that_there_is_nothing_to_align(name: str) -> None:
    with pytest.raises(ValueError, match=r"is asymmetric, so that there is nothing to match"):
        play_of(name)


@pytest.mark.parametrize("name", LINEAR_HEAD)
def test_a_method_that_needs_a_linear_head_says_how_to_give_it_one(name: str) -> None:
    with pytest.raises(ValueError, match=r"is fc3; it must be .*; let \[model.asymmetry\] fixed name other layers"):
        play_of(name)


def test_an_average_without_matching_runs_and_its_variance_is_that_of_what_trains() -> None:
    play = Play(
        "matched_average",
        {"matching": "none", "repair": "variance"},
        model=asymmetric_mlp,
        rounds=2,
    )
    fixed = fixed_entries(play.federation.model())
    for _ in play.rounds():
        for key, own in fixed.items():
            average = play.strategy.global_model[key]
            assert is_zero(average[own.free == 0])
            sizes = {client: play.sizes[client] for client in play.replied}
            spreads = [
                size / sum(sizes.values()) * play.uploaded(client)[key][own.free > 0].var(correction=0)
                for client, size in sizes.items()
            ]
            found = average[own.free > 0].var(correction=0)
            torch.testing.assert_close(found, torch.stack(spreads).sum(), rtol=0.01, atol=0)
