"""Every round records what share of the clients' variance is left in each layer of the global model."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.experiment.measuring.step import variance_rows
from fedsim.experiment.verifying.replay import replay
from fedsim.experiment.verifying.verify import verify
from fedsim.models.layers import Layers
from fedsim.models.variance import BLOCK, HELD, constant_keys, variances
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from fedsim.results.variances import describe_variances
from fedsim.strategy import ClientUpdate
from tests.conftest import unseal


def test_a_layer_has_the_variance_of_its_tensors_about_their_means_and_clients_count_by_their_examples() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    generator = torch.Generator().manual_seed(0)
    shared = [
        {
            key: torch.randn(value.shape, generator=generator, dtype=torch.float64) + 3
            for key, value in model.state_dict().items()
            if key.startswith("0.")
        }
        for _ in range(2)
    ]
    updates = [
        ClientUpdate(client, each, weight, variances=variances(each, each))
        for client, (each, weight) in enumerate(zip(shared, (1.0, 3.0), strict=True))
    ]
    strategy = SimpleNamespace(layers=Layers.of(model), global_model=dict(model.state_dict()))
    of = [
        (12 * each["0.weight"].var(correction=0) + 3 * each["0.bias"].var(correction=0)) / 15
        for each in (*shared, {key: value.detach() for key, value in model.state_dict().items()})
    ]
    mean = (of[0] + 3 * of[1]) / 4
    of_weight = [each["0.weight"].var(correction=0) for each in (*shared, strategy.global_model)]
    (row,) = variance_rows(strategy, updates, {"0.bias"})  # type: ignore[arg-type]
    expected = of_weight[2] / ((of_weight[0] + 3 * of_weight[1]) / 4)
    assert row["ratio"] == pytest.approx(float(expected))
    assert not list(variance_rows(strategy, updates, {"0.weight", "0.bias"}))  # type: ignore[arg-type]
    (row,) = variance_rows(strategy, updates)  # type: ignore[arg-type]
    assert row == {"layer": "0", "variance": pytest.approx(float(mean)), "ratio": pytest.approx(float(of[2] / mean))}


def test_the_variance_of_a_large_tensor_is_that_of_its_blocks_together() -> None:
    values = torch.arange(2 * BLOCK + 100, dtype=torch.float32).sqrt()
    expected = float(values.double().var(correction=0))
    assert variances({"x": values, "y": values[:1]}, ["x", "y"]) == {"x": pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize("n", [HELD, HELD + 1])
def test_whether_a_tensor_is_held_for_both_passes_changes_no_bit_of_its_variance_nor_the_tensor(n: int) -> None:
    for seed in range(4):  # another order of the sums changes a bit of some of them only
        values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).exp()
        before = values.clone()
        mean = torch.stack([block.sum() for block in before.split(BLOCK)]).sum() / n
        expected = torch.stack([((block - mean) ** 2).sum() for block in before.split(BLOCK)]).sum() / n
        assert variances({"x": values}, ["x"]) == {"x": float(expected)}
        assert torch.equal(values, before)


def test_averages_of_independent_models_raise_an_alarm_which_earlier_runs_do_not_have(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folder = play(tiny(model__initial="own", partition={"scheme": "iid"}, barriers__every=0, local__lr=0.01))
    rows = read_result(folder).variances
    assert list(rows["round"]) == [1, 1, 2, 2]
    assert list(rows["ratio"]) == pytest.approx([0.25, 0.25, 1.0, 1.0], rel=0.15)
    (text,) = describe_variances(rows)
    assert text.startswith("after round 1, fc")
    assert "(2 layers less than half)" in text
    assert describe_variances(rows[rows["round"] == 2]) == []
    assert verify(folder).is_whole
    assert replay(unseal(folder), 1).difference is None
    changed = folder.variances.read_text().replace('"variance": 0.', '"variance": 1.')
    folder.variances.write_text(changed)
    assert "variances.jsonl" in str(replay(folder, 1).difference)
    folder.variances.unlink()  # as an earlier version would have written it
    assert read_result(folder).variances.empty
    assert replay(folder, 1).difference is None


@pytest.mark.parametrize("kind", ["lora", "vera"])
def test_adapters_that_begin_as_constants_raise_no_alarm(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], kind: str
) -> None:
    model = {"name": "mlp", "hidden": [12, 12], "adapter": {"kind": kind}}
    folder = play(tiny(model=model, local__lr=0.2, barriers__every=0))
    rows = read_result(folder).variances
    assert set(rows["layer"]) == {"fc3"} | ({"fc1.lora_A.default", "fc2.lora_A.default"} if kind == "lora" else set())
    assert describe_variances(rows) == []
    assert replay(folder, 2).difference is None  # a resumed round leaves out the same


def test_a_tensor_of_equal_entries_is_constant() -> None:
    params = {
        "a": torch.full((3, 2), 0.1),
        "b": torch.tensor([1.0, 1.0, 2.0]),
        "c": torch.zeros(1),
        "d": torch.zeros(0),
    }
    assert constant_keys(params) == {"a", "c"}
