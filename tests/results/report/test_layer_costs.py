import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedsim.config import Config
from fedsim.results.files import write_json
from fedsim.results.report.charts.layer_costs import LayerCosts, cost_sentence, layer_costs
from fedsim.results.report.charts.layer_strip import layer_strip, strip_cells
from fedsim.results.result import Result
from tests.results.report.cases import result

LAYERS = ("conv1", "conv2", "fc")


def rows_of(costs: dict[str, Sequence[float]], data: str = "clients", server_round: int = 4) -> pd.DataFrame:
    """Return barriers of clients whose loss grows by these amounts if a layer is averaged."""
    return pd.DataFrame(
        {"group": group, "base": base, "other": other, "t": t, "n": 50, "round": server_round, "data": data}
        | {"matching": "none", "path": "factors", "loss_own_base": value if t == 1 else 99.0, "loss_mean_ends": -50.0}
        for group, values in costs.items()
        for base, value in enumerate(values)
        for other, t in ((-1, 1.0), (-1, 0.5), ((base + 1) % len(values), 1.0))
    )


def run_with(config: Config, barriers: pd.DataFrame, folder: Path, head: Sequence[str] = ("fc",)) -> Result:
    """Return a run with these barriers, whose layers are in the folder's record of the model."""
    made = result(config, [[0.5, 0.5]], experiment=folder)
    made.folder.path.mkdir(parents=True, exist_ok=True)
    write_json(made.folder.model, {"layers": list(LAYERS), "head": list(head)})
    return replace(made, barriers=barriers)


def test_one_seeds_costs_are_means_with_students_interval_over_its_clients(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    values = {"fc": [0.3, 0.6, 0.45, 0.4], "conv1": [0.01, -0.02, 0.0, 0.01], "full": [1.0, 2.0, 3.0, 4.0]}
    costs = layer_costs([run_with(tiny(), rows_of(values), tmp_path)])
    assert costs is not None
    assert list(costs.rows["layer"]) == ["conv1", "fc", "full"]  # in the model's order, whatever that of the rows
    for layer, of_clients in values.items():
        row = costs.rows[costs.rows["layer"] == layer].iloc[0]
        low, high = stats.t.interval(0.95, 3, np.mean(of_clients), stats.sem(of_clients))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(of_clients), low, high))
        assert (row["least"], row["most"], row["clients"]) == (min(of_clients), max(of_clients), 4)
        assert row["lose"] == sum(value > 0 for value in of_clients)
    assert costs.over == "4 clients of one seed"


def test_several_seeds_costs_have_their_interval_over_the_seeds(tiny: Callable[..., Config], tmp_path: Path) -> None:
    by_seed = [[0.1, 0.3], [0.5, 0.7], [0.2, 0.2]]
    runs = [
        run_with(tiny(seed=seed), rows_of({"fc": values}), tmp_path / str(seed)) for seed, values in enumerate(by_seed)
    ]
    costs = layer_costs(runs)
    assert costs is not None
    means = [0.2, 0.6, 0.2]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    row = costs.rows.iloc[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(means), low, high))
    assert (row["clients"], costs.over) == (6, "3 seeds")


def test_the_clients_view_comes_before_the_servers(tiny: Callable[..., Config], tmp_path: Path) -> None:
    server, clients = rows_of({"fc": [5.0, 6.0]}, "server"), rows_of({"fc": [0.1, 0.2]}, "clients")
    both = layer_costs([run_with(tiny(), pd.concat([server, clients]), tmp_path)])
    only = layer_costs([run_with(tiny(), server, tmp_path)])
    assert both is not None
    assert only is not None
    assert (both.view, both.rows["mean"].iloc[0]) == ("clients", pytest.approx(0.15))
    assert (only.view, only.rows["mean"].iloc[0]) == ("server", pytest.approx(5.5))
    assert "on the server's test data" in cost_sentence(only)


def test_what_is_not_finite_is_counted_and_in_no_mean(tiny: Callable[..., Config], tmp_path: Path) -> None:
    costs = layer_costs([run_with(tiny(), rows_of({"fc": [0.1, math.nan, 0.3, math.inf]}), tmp_path)])
    assert costs is not None
    row = costs.rows.iloc[0]
    assert (row["mean"], row["missing"], row["clients"]) == (pytest.approx(0.2), 2, 4)


def test_a_run_without_barriers_has_no_costs(tiny: Callable[..., Config], tmp_path: Path) -> None:
    assert layer_costs([run_with(tiny(), pd.DataFrame(), tmp_path)]) is None
    assert layer_strip({}) is None


def made_up(intervals: dict[str, tuple[float, float]], view: str = "clients", seeds: int = 3) -> LayerCosts:
    rows = pd.DataFrame(
        {"round": 4, "layer": layer, "mean": (low + high) / 2, "low": low, "high": high, "least": low, "most": high}
        | {"clients": 6, "lose": 3, "missing": 0}
        for layer, (low, high) in intervals.items()
    )
    layers = [layer for layer in intervals if layer != "full"]
    return LayerCosts(rows, view, seeds, pd.Series(100.0, layers), ("fc",), "nats")


@pytest.mark.parametrize(
    ("intervals", "sentence"),
    [
        (
            {"conv1": (-0.05, 0.04), "conv2": (-0.02, 0.06), "fc": (0.31, 0.58)},
            "Averaging the head (fc) costs clients 0.31 to 0.58 nats; no cost is clear for the body (at most 0.06 nats "
            "each) (95 % intervals over 3 seeds, on their own test data, after round 4).",
        ),
        (
            {"conv1": (0.1, 0.4), "conv2": (0.2, 0.6), "fc": (0.3, 0.5), "full": (0.8, 1.2)},
            "Averaging every layer costs clients 0.1 to 0.6 nats each; averaging all layers together changes the loss "
            "by +0.8 to +1.2 nats (95 % intervals over 3 seeds, on their own test data, after round 4).",
        ),
        (
            {"conv1": (-0.3, -0.1), "conv2": (-0.1, 0.2), "fc": (0.0, 0.5), "full": (-0.1, 0.2)},
            "Averaging conv1 lowers clients' loss by 0.1 to 0.3 nats; no cost is clear for fc and conv2 (at most 0.5 "
            "nats each); averaging all layers together may change the loss by \u22120.1 to +0.2 nats (95 % "
            "intervals over 3 seeds, on their own test data, after round 4).",
        ),
        (
            {"conv1": (-0.01, 0.4), "fc": (-0.2, 0.3)},
            "No layer's averaging shows a cost or a gain: each interval includes 0 (conv1: \u22120.01 to +0.4 nats) "
            "(95 % intervals over 3 seeds, on their own test data, after round 4).",
        ),
        (
            {"conv1": (math.nan, math.nan), "fc": (math.nan, math.nan)},
            "What averaging a layer costs is not known: no value is finite (95 % intervals over 3 seeds, on their own "
            "test data, after round 4).",
        ),
    ],
)
def test_the_sentence_claims_what_the_intervals_show(intervals: dict[str, tuple[float, float]], sentence: str) -> None:
    assert cost_sentence(made_up(intervals)) == sentence


@pytest.mark.parametrize("low", [-1.0, -0.1, -1e-9, 0.0])
def test_no_cost_is_claimed_where_the_interval_includes_0(low: float) -> None:
    assert "costs" not in cost_sentence(made_up({"conv1": (low, 3.0), "fc": (low, 5.0)}))


def test_many_layers_are_named_by_the_costliest() -> None:
    intervals = {f"layer{k}": (0.1 * k, 0.1 * k + 0.05) for k in range(1, 9)} | {"fc": (-1.0, 1.0)}
    assert "averaging layer8, layer7, layer6 and 5 more layers costs" in cost_sentence(
        made_up(intervals | {"other": (-0.1, 0.1)})
    ).replace("Averaging", "averaging")


def test_the_strip_has_the_numbers_of_the_records_and_names_as_values_only(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    hostile = "a.b['\"</script><b>]\\"
    values = {"fc": [0.3, 0.6], "conv1": [0.0, 0.1], "conv2": [-0.1, 0.1], "full": [1.0, 2.0]}
    barriers = pd.concat([rows_of(values, server_round=2), rows_of(values, server_round=4)])
    costs = layer_costs([run_with(tiny(), barriers, tmp_path)])
    assert costs is not None
    cells, full = strip_cells({hostile: costs}, {hostile: pd.DataFrame({2: {"fc": 0.5}, 4: {"fc": 1.0}})})
    means = cells[cells["r"] == 4].set_index("l")["m"]
    assert means.to_dict() == pytest.approx({0: 0.05, 1: 0.0, 2: 0.45})
    assert full["m"].tolist() == pytest.approx([1.5, 1.5])
    assert cells[cells["l"] == 2]["u"].tolist() == [0.5, 1.0]
    assert cells[cells["r"] == 2]["e"].unique().tolist() == [3]  # up to the next measured round
    chart = layer_strip({hostile: costs})
    assert chart is not None
    written = chart.to_dict(validate=True)
    assert hostile in [row.get("t") for rows in written["datasets"].values() for row in rows]
    without_data = json.dumps({key: value for key, value in written.items() if key != "datasets"})
    assert "script" not in without_data


def test_a_strip_of_many_rounds_and_layers_keeps_within_its_room(tiny: Callable[..., Config], tmp_path: Path) -> None:
    costs = made_up({f"layer{k}": (0.0, 1.0) for k in range(60)})
    many = replace(costs, rows=pd.concat([costs.rows.assign(round=number) for number in range(1, 201)]))
    cells, _ = strip_cells({str(number): many for number in range(8)}, {})
    assert len(cells) <= 5000
    assert {1, 200} <= set(cells["r"])


@pytest.mark.parametrize("known", [True, False])
def test_widths_are_the_layers_bytes_where_the_records_have_them(
    known: bool, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    run = run_with(tiny(), rows_of({layer: [0.1, 0.2] for layer in LAYERS}), tmp_path)
    write_json(run.folder.model, {"layers": list(LAYERS), "head": [], "trainable": 111, "trainable_bytes": 444})
    if known:  # distances tell a layer's parameters, also of one that never travels
        sizes = dict(zip(LAYERS, (1, 10, 100), strict=True))
        (run.folder.path / "distances").mkdir()
        pd.DataFrame(
            {"group": layer, "base": base, "other": -1, "distance": 3.0, "distance_rms": 3.0 / math.sqrt(size)}
            for layer, size in sizes.items()
            for base in (0, 1)
        ).to_parquet(run.folder.path / "distances" / "round-00004.parquet")
    costs = layer_costs([run])
    assert costs is not None
    if known:
        assert costs.sizes.to_dict() == {"conv1": 4.0, "conv2": 40.0, "fc": 400.0}
    else:
        assert costs.sizes.isna().all()
