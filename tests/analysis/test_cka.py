import copy
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim.analysis.cka import centred_products, cka, hsic
from fedsim.models.params import Params
from tests.analysis.cases import mlp, models, norm_net


def slow_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over all ordered choices of four different examples of what HSIC is the expectation of."""
    n, total = len(first), 0.0
    k, m = first @ first.T, second @ second.T
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_the_estimate_is_the_mean_over_all_choices_of_four() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(7, 3)) + 5, draw.normal(size=(7, 4))
    found = hsic(*(centred_products(torch.from_numpy(each)) for each in (first, second)))
    assert found == pytest.approx(slow_hsic(first, second), rel=1e-12)


def features_of(state: Params, inputs: Tensor) -> dict[str, Tensor]:
    first = (inputs @ state["0.weight"].T + state["0.bias"]).relu()
    second = (first @ state["2.weight"].T + state["2.bias"]).relu()
    return {"0": first, "2": second, "4": second @ state["4.weight"].T + state["4.bias"]}


def test_every_row_agrees_with_a_slow_implementation() -> None:
    model, states, inputs, _ = models(3)
    inputs = inputs[:17]
    table = cka(model, states, inputs, batch_size=10)
    assert table[["base", "other"]].drop_duplicates().to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    for _, row in table.iterrows():
        pair = [features_of(states[row[end]], inputs)[row["layer"]].numpy() for end in ("base", "other")]
        sums = [
            9 * slow_hsic(pair[i][:9], pair[j][:9]) + 8 * slow_hsic(pair[i][9:], pair[j][9:])
            for i, j in ((0, 1), (0, 0), (1, 1))
        ]
        assert row["n"] == 17
        assert row["cka"] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-10)


def test_it_agrees_with_another_library() -> None:
    peer = pytest.importorskip("cka", reason="pytorch-cka is not installed")
    model, states, inputs, _ = models(2)
    # Its batches count alike, whatever their size.
    nets = [copy.deepcopy(model) for _ in states]
    for net, state in zip(nets, states, strict=True):
        net.load_state_dict(state)
        net.float()
    loader = torch.utils.data.DataLoader(inputs.float(), batch_size=10)
    (theirs,) = peer.compute_cka(*nets, loader, layers=["1", "3", "4"], device="cpu", progress=False)
    found = cka(model, states, inputs, batch_size=10)["cka"]
    np.testing.assert_allclose(found, theirs.diagonal(), rtol=1e-4)


class Given(nn.Module):
    """Gives what its weight is, whatever the inputs: rows of features of its own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n, 6)

    def forward(self, rows: Tensor) -> Tensor:
        return self.table(rows)


def given(*tables: Tensor, batch_size: int = 200) -> list[float]:
    """CKA of the first features with each of the others."""
    model = Given(len(tables[0])).double()
    pairs = [(0, number) for number in range(1, len(tables))]
    states = [{"table.weight": table} for table in tables]
    return list(cka(model, states, torch.arange(len(tables[0])), pairs=pairs, batch_size=batch_size)["cka"])


def test_rotation_and_scale_do_not_matter_and_other_maps_do() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 6, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double())[0]
    stretched = features * torch.tensor([1.0, 2, 3, 4, 5, 6]).double()
    found = given(features, features, 0.3 * features @ rotation + 2, -features, stretched)
    assert found[:3] == pytest.approx([1, 1, 1], abs=1e-12)
    assert 0.5 < found[3] < 0.95


def test_the_estimate_of_independent_features_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 6, generator=generator).double()
    other = torch.randn(4000, 6, generator=generator).double()
    few, many = (given(features, other, batch_size=size)[0] for size in (8, 100))
    # The biased estimate is above 0.5 in batches of 8.
    assert abs(few) < 0.05
    assert abs(many) < 0.01


def test_features_that_are_all_alike_have_no_cka() -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()
    assert np.isnan(given(features, torch.ones(20, 6).double())[0])


def test_threads_change_nothing_and_the_model_stays_as_it_was() -> None:
    model, states, inputs, _ = models(3, norm_net)
    before = copy.deepcopy(model.state_dict())
    one, three = (cka(model, states, inputs, batch_size=8, threads=threads) for threads in (1, 3))
    pd.testing.assert_frame_equal(one, three, check_exact=True)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_model_that_skips_a_layer_for_some_inputs_has_its_outputs_as_the_only_features() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            inner = self.first(x)
            return self.third(self.second(inner) if float(x.detach().abs().max()) < 1e3 else inner)

    model, inputs = Skipping().double(), models(1)[2]
    states = [model.state_dict()] * 2
    assert list(cka(model, states, inputs)["layer"]) == ["first", "second", "third"]
    inputs[-1] = 1e4
    assert list(cka(model, states, inputs)["layer"]) == ["output"]


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, _ = models(2, mlp)
    assert len(cka(model, states, inputs, pairs=[])) == 0
    for arguments, options, message in (
        ((states[:1], inputs), {}, "there is 1 state"),
        ((states, inputs), {"pairs": [(0, 5)]}, r"pair \(0, 5\)"),
        ((states, inputs), {"batch_size": 7}, "batch_size = 7 must be at least 8"),
        ((states, inputs[:3]), {}, "there are 3 inputs; the unbiased estimate needs at least 4"),
    ):
        with pytest.raises(ValueError, match=message):
            cka(model, *arguments, **options)
