"""Rotations found by gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedsim.alignment.matching.learned_rotations import learn_rotations
from fedsim.alignment.matching.straight_through import match_straight_through
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import Permutation, Spec, permute
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.alignment.symmetries.rotations import is_rotation, rotation_from
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.models.params import Params, lerp, state_of
from tests.alignment.test_rotations import KINDS
from tests.strategies.test_rotated_average import Former

SETTINGS = {"epochs": 3, "lr": 0.02, "batch_size": 16}


def pair() -> tuple[nn.Module, Spec, list[Params], Tensor, Tensor]:
    """Return a transformer, its symmetries, two states that are trained a little, and their examples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = torch.arange(48) % 3
        inputs = torch.randn(3, 4).double()[targets] * 2 + torch.randn(48, 4).double()
        made = [Former().double() for _ in range(2)]
    for model in made:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        model.eval()
    spec = rotation_spec(made[0], inputs[:2])
    states = [absorb_norms({k: v.clone() for k, v in state_of(model).items()}, spec.norms) for model in made]
    return made[0], spec, states, inputs, targets


def test_they_have_a_lower_loss_halfway_than_weight_matching_and_the_model_computes_the_same() -> None:
    model, spec, (one, other), inputs, targets = pair()

    def outputs(params: Params) -> Tensor:
        with torch.no_grad():
            return functional_call(model, params, (inputs,))

    def halfway(found: Permutation) -> float:
        return float(cross_entropy(outputs(lerp(one, permute(other, spec, found), 0.5)), targets))

    start = match_weights(spec, one, other, rng=np.random.default_rng(0)).permutation
    learned, again = (
        learn_rotations(model, spec, one, other, inputs, targets, rng=np.random.default_rng(0), **SETTINGS)
        for _ in range(2)
    )
    assert halfway(learned) < 0.9 * halfway(start)
    torch.testing.assert_close(outputs(permute(other, spec, learned)), outputs(other), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(each, start[name]) for name, each in learned.items() if not is_rotation(name))
    assert all(torch.equal(each, again[name]) for name, each in learned.items())
    still = learn_rotations(
        model, spec, one, other, inputs, targets, rng=np.random.default_rng(0), **SETTINGS | {"lr": 1e3}
    )
    assert halfway(still) <= halfway(start) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_are_made_of_stays_in_its_group(kind: str) -> None:
    matrices = rotation_from(kind, torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0)).double())
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(6).double().expand(3, 6, 6))
    assert float((matrices - torch.eye(6)).abs().max()) > 0.5
    torch.testing.assert_close(rotation_from(kind, torch.zeros(6, 6).double()), torch.eye(6).double())
    if kind == "centred":
        torch.testing.assert_close(matrices.sum(-1), torch.ones(3, 6).double())
    if kind == "phases":
        ones = (torch.eye(6) + torch.eye(6).roll(3, 0)).double()
        assert torch.equal(matrices * ones, matrices)
        torch.testing.assert_close(matrices[:, :3, :3], matrices[:, 3:, 3:])


def test_a_wrong_spec_or_setting_is_named() -> None:
    model, spec, (one, other), inputs, targets = pair()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^epochs = 0 must be at least 1; "):
        learn_rotations(model, spec, one, other, inputs, targets, rng=rng, epochs=0)
    with pytest.raises(ValueError, match=r"^the spec has no rotations to learn; pass one of rotation_spec"):
        learn_rotations(model, permutation_spec(model, inputs[:2]), one, other, inputs, targets, rng=rng)
    with pytest.raises(ValueError, match=r"^the spec has rotations, and this search finds permutations; use learn_rot"):
        match_straight_through(model, spec, one, other, inputs, targets, rng=rng)
