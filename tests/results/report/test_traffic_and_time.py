import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedsim.config import Config
from fedsim.results.report.charts.seconds import round_seconds, run_seconds, seconds_by_round, seconds_of_runs
from fedsim.results.report.charts.traffic import REST, bytes_by_layer, traffic_chart
from fedsim.results.result import Result
from tests.results.report.cases import result

HOSTILE = "a.b['\"</script>]\\"


def with_traffic(config: Config) -> Result:
    rows = [
        (server_round, client, kind, layer, up, down)
        for server_round in (1, 2)
        for client in (0, 1)
        for kind, layer, up, down in (("model", "fc1", 100, 50), ("model", HOSTILE, 10, 0), ("control", "fc1", 1, 2))
    ]
    table = pd.DataFrame(rows, columns=["round", "client", "set", "layer", "up", "down"])
    return replace(result(config, [[0.5, 0.5]]), communication=table)


def test_bytes_by_layer_are_the_sums_of_the_records_and_means_over_runs(tiny: Callable[..., Config]) -> None:
    run = with_traffic(tiny())
    double = replace(run, communication=run.communication.assign(up=2 * run.communication["up"]))
    once, both = bytes_by_layer([run]), bytes_by_layer([run, double])
    assert once["up"].to_dict() == {"fc1": 400, HOSTILE: 40, "fc1 (control)": 4}
    assert once["down"].to_dict() == {"fc1": 200, HOSTILE: 0, "fc1 (control)": 8}
    assert both["up"].to_dict() == {"fc1": 600, HOSTILE: 60, "fc1 (control)": 6}
    assert both["down"].equals(once["down"])


def test_a_run_that_sends_nothing_counts_as_0_bytes(tiny: Callable[..., Config]) -> None:
    silent = result(tiny(), [[0.5, 0.5]])
    assert bytes_by_layer([with_traffic(tiny()), silent])["up"]["fc1"] == 200
    assert traffic_chart({"local": bytes_by_layer([silent])}) is None
    assert traffic_chart({}) is None


def test_bars_have_all_bytes_and_names_as_values_only(tiny: Callable[..., Config]) -> None:
    table = bytes_by_layer([with_traffic(tiny())])
    for names in (["one"], ["one", HOSTILE]):
        chart = traffic_chart(dict.fromkeys(names, table))
        assert chart is not None
        written = chart.to_dict(validate=True)
        rows = next(rows for rows in written["datasets"].values() if "v" in rows[0])
        assert sum(row["v"] for row in rows) == len(names) * (444 + 208)
        assert "script" not in json.dumps([written.get("transform"), written["mark"]])


def test_layers_without_room_are_one_bar_of_all_others() -> None:
    layers = pd.DataFrame({"up": np.arange(1.0, 301.0), "down": 0.0}, index=[f"layer{k}" for k in range(300)])
    chart = traffic_chart({f"run{k}": layers for k in range(40)})
    assert chart is not None
    written = chart.to_dict(validate=False)
    rows = next(rows for rows in written["datasets"].values() if "v" in rows[0])
    assert len(rows) <= 5000
    assert sum(row["v"] for row in rows) == 40 * 300 * 301 / 2
    assert REST in json.dumps(written["datasets"])


def timed(config: Config, rounds: int) -> Result:
    parts = {"round": range(1, rounds + 1), "train": 1.0, "evaluate": 0.5, "barriers": [None, 4.0] * (rounds // 2)}
    return replace(result(config, [[0.5, 0.5]]), timing=pd.DataFrame(parts))


@pytest.mark.parametrize("rounds", [4, 1000])
def test_seconds_are_those_of_the_parts_of_each_round(rounds: int, tiny: Callable[..., Config]) -> None:
    run = timed(tiny(), rounds)
    table = seconds_by_round(run)
    assert list(table) == ["training", "evaluation", "analysis"]
    assert table["analysis"].tolist()[:2] == [0.0, 4.0]
    chart = round_seconds(run)
    assert chart is not None
    rows = next(iter(chart.to_dict(validate=True)["datasets"].values()))
    assert len(rows) <= 360
    total = sum(row["v"] * (row["b"] - row["a"] + 1) for row in rows)
    assert total == pytest.approx(run.seconds_total)


def test_seconds_of_runs_are_means_of_their_totals(tiny: Callable[..., Config]) -> None:
    seconds = seconds_of_runs([timed(tiny(), 2), timed(tiny(), 4)])
    assert seconds.to_dict() == {"training": 3.0, "evaluation": 1.5, "analysis": 6.0}
    chart = run_seconds({HOSTILE: seconds, "b": seconds})
    assert chart is not None
    chart.to_dict(validate=True)
    assert run_seconds({}) is None
    assert round_seconds(replace(timed(tiny(), 2), timing=pd.DataFrame())) is None
