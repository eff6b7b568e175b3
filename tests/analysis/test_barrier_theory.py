from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.analysis import barriers
from tests.analysis.cases import N, models, row, squared


def test_a_quadratic_loss_gives_the_closed_form() -> None:
    # f = ||w - y||^2 / 2 along a segment: barrier against the chord is -t (1 - t) ||a - b||^2 / 2.
    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.w.expand(len(x), -1)

    a, b = {"w": torch.tensor([1.0, 2, 0, -1]).double()}, {"w": torch.tensor([0.0, 5, 1, 1]).double()}
    inputs, targets = torch.zeros(3, 1), torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    table = barriers(
        Point(),
        [a, b],
        inputs,
        targets,
        groups="full",
        against="pairs",
        ts=[0.25, 0.5, 0.9],
        criterion=lambda outputs, targets: squared(outputs, targets) / 2,
    )
    distance = float((a["w"] - b["w"]).square().sum())
    for _, each in table.iterrows():
        assert each["loss_chord"] == pytest.approx(-each["t"] * (1 - each["t"]) * distance / 2, abs=1e-12)
    assert table["error"].isna().all()


def deep_linear() -> nn.Module:
    return nn.Sequential(*(nn.Linear(5, 5, bias=False) for _ in range(3)))


def test_theorem_4_1_on_a_deep_linear_network() -> None:
    # arXiv 2307.06966, Theorem 4.1: along one layer the squared loss is a convex quadratic in t.
    model, states, inputs, _ = models(2, deep_linear)
    targets = torch.randn(N, 5, generator=torch.Generator().manual_seed(1)).double()
    ts = [0.0, 0.25, 0.5, 0.75, 1.0]
    table = barriers(model, states, inputs, targets, groups="layers", against="pairs", ts=ts, criterion=squared)
    for (layer, base, other), path in table.groupby(["group", "base", "other"]):
        second = np.diff(path.sort_values("t")["loss"], 2)
        assert np.ptp(second) < 1e-10 * abs(second).max()
        left, right = states[base], states[other]
        hidden = inputs
        for name in ("0", "1", "2"):
            weight = left[f"{name}.weight"] - right[f"{name}.weight"] if name == layer else left[f"{name}.weight"]
            hidden = hidden @ weight.T
        leading = float(hidden.square().sum(1).mean())
        assert second[0] == pytest.approx(2 * leading * 0.25**2, rel=1e-9)
        middle = path[path["t"] == 0.5].iloc[0]
        assert middle["loss_swap_ends"] == pytest.approx(-leading / 4, rel=1e-9)


class Product(nn.Module):
    """f(w1, w2) = w1 w2 on the constant input 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_the_one_dimensional_example_of_the_paper() -> None:
    # w = (a, 1/a), w' = (1/a, a), loss (w1 w2 - 1)^2, a = 0.1: 600.37 jointly; layer 2 alone 0.245 on w, 2450.25 on w'.
    a = 0.1
    states = [
        {
            "first.weight": torch.tensor([[first]], dtype=torch.float64),
            "second.weight": torch.tensor([[1 / first]], dtype=torch.float64),
        }
        for first in (a, 1 / a)
    ]
    one = torch.ones(1, 1).double()
    table = barriers(Product().double(), states, one, one, groups=["full", "layers"], criterion=squared)
    assert row(table, group="full", base=0)["loss_mean_ends"] == pytest.approx(
        (((a + 1 / a) / 2) ** 2 - 1) ** 2, abs=1e-9
    )
    assert row(table, group="second", base=0)["loss_mean_ends"] == pytest.approx((1 - a**2) ** 2 / 4, abs=1e-9)
    assert row(table, group="second", base=1)["loss_mean_ends"] == pytest.approx((a**-2 - 1) ** 2 / 4, abs=1e-9)
    pairs = barriers(
        Product().double(), states, one, one, groups="layers", against="pairs", ts=[0.5], criterion=squared
    )
    assert row(pairs, group="second", base=1)["loss_mean_ends"] == pytest.approx(2450.25, abs=1e-9)
    assert row(pairs, group="second", base=1)["loss_swap_ends"] == pytest.approx(-2450.25, abs=1e-9)


def test_the_last_linear_layer_never_has_a_positive_swap_ends_barrier() -> None:
    # Its logits are affine in t and cross-entropy is convex in the logits.
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            nets = [nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double() for _ in range(3)]
            inputs, targets = torch.randn(N, 5).double(), torch.randint(0, 3, (N,))
        states = [net.state_dict() for net in nets]
        table = barriers(nets[0], states, inputs, targets, groups={"h": "head"}, against="pairs", ts=[0.1, 0.5, 0.7])
        assert table["loss_swap_ends"].max() <= 1e-12


def trained(init: int, order: int, inputs: Tensor, targets: Tensor) -> tuple[nn.Module, dict]:
    """Train an MLP with four layers on all examples for 20 epochs."""
    widths = [inputs.shape[1], 128, 128, 128]
    torch.manual_seed(init)
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    net = nn.Sequential(*layers, nn.Linear(128, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(order)
    for _ in range(20):
        for batch in torch.randperm(len(targets)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return net, net.state_dict()


@pytest.mark.slow
def test_models_of_different_initialisation_have_a_full_barrier_and_small_ones_of_layers() -> None:
    # The expectations of METHODS.md, section A9.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres = torch.randn(10, 3, 20) * 1.2
        targets = torch.arange(2000) % 10
        inputs = centres[targets, torch.randint(3, (2000,))] + 0.6 * torch.randn(2000, 20)
        model, first = trained(1, 1, inputs, targets)
        _, reordered = trained(1, 2, inputs, targets)
        _, other = trained(2, 1, inputs, targets)
    options = {"groups": ["full", "layers"], "against": "pairs", "ts": [0.5]}
    same = barriers(model, [first, reordered], inputs, targets, **options)
    different = barriers(model, [first, other], inputs, targets, **options)
    assert (different["error"] - different["error_own_base"]).max() < 0.01
    full = different.query("group == 'full'")["loss_mean_ends"].min()
    assert full > 0.5
    assert different.query("group != 'full'")["loss_mean_ends"].max() < 0.5 * full
    assert same["loss_mean_ends"].abs().max() < 0.02
