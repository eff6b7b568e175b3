"""Ranks that differ between clients: factors of the largest, cut, compute what factors of the own rank do."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_, factors_of, merge_
from fedsim.models.copies import loaded
from fedsim.models.params import Params, state_of
from fedsim.models.ranks import cut_to_rank, deal_ranks_
from fedsim.training import LocalPlan, LocalSettings, train_

INPUTS = torch.linspace(-1, 1, 60, dtype=torch.float64).view(12, 5)
TARGETS = torch.arange(12) % 3
FIRST, SECOND = "0.lora_A.default.weight", "0.lora_B.default.weight"


def adapted(rank: int, ranks: tuple[int, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    adapt_(model, Adapter(rank=rank, alpha=3.0), INPUTS)
    if ranks:
        deal_ranks_(model, ranks)
    return model


def trained(model: nn.Module, params: Params, settings: LocalSettings) -> Params:
    """Return the merged weights after training."""
    net = loaded(model, params).train()
    train_(net, INPUTS, TARGETS, LocalPlan(), settings, np.random.default_rng(0))
    merge_(net.eval())
    return net.state_dict()


@pytest.mark.parametrize("client", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        LocalSettings(epochs=2, batch_size=4, lr=0.2, momentum=0.9, weight_decay=0.1, clip_norm=0.5),
        LocalSettings(epochs=2, batch_size=4, lr=0.05, optimizer="adamw", weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_a_client_trains_as_factors_of_its_own_rank_would_with_their_scale(
    client: int, settings: LocalSettings
) -> None:
    rank = (4, 1, 2)[client % 3]
    model, own = adapted(4, (4, 1, 2)), adapted(rank)
    stream = torch.manual_seed(1)
    drawn = {key: torch.randn(state_of(model)[key].shape, generator=stream).double() for key in (FIRST, SECOND)}
    whole = cut_to_rank(factors_of(model), state_of(model) | drawn, client)
    small = state_of(own) | {FIRST: drawn[FIRST][:rank], SECOND: drawn[SECOND][:, :rank]}
    torch.testing.assert_close(loaded(model, whole)(INPUTS), loaded(own, small)(INPUTS))
    found, expected = trained(model, whole, settings), trained(own, small, settings)
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)
    assert [each.ranks for each in factors_of(model)] == [(4, 1, 2)]
