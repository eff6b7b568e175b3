"""Charts of who holds what, and of each client before and after training, by hand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.data.heterogeneity import Heterogeneity, mean_of
from fedsim.results.report.charts.before_after import before_after_chart
from fedsim.results.report.charts.embedded import embedded
from fedsim.results.report.charts.partition import partition_chart
from fedsim.results.report.drawing.partition import MOST_CLIENTS, partition
from fedsim.results.report.drawing.style import save
from partitions import LabelCounts


def data_of(chart: Any) -> list[list[dict[str, Any]]]:
    """Return the rows of each set of data of a chart."""
    tables = embedded({"chart": chart})["datasets"].values()
    columns = [
        [each if isinstance(each, list) else [each["texts"][place] for place in each["places"]] for each in t["values"]]
        for t in tables
    ]
    return [
        [dict(zip(table["names"], row, strict=True)) for row in zip(*values, strict=True)]
        for table, values in zip(tables, columns, strict=True)
    ]


def held(clients: int) -> Heterogeneity:
    """Return clients of which each holds one example more than the one before: of class a, the last also of b."""
    labels = np.array([*[0] * clients, 1])
    counts = LabelCounts(np.array([*range(clients), clients + 1]), labels, np.arange(1, clients + 2), 2)
    return Heterogeneity(np.array([*range(1, clients), 2 * clients + 1]), counts, ("a", "b <i>"))


def test_a_small_partition_has_a_bar_for_each_client_and_a_bubble_for_each_class_that_it_holds() -> None:
    bars, bubbles = data_of(partition_chart(held(3)))
    assert [(row["i"], row["n"]) for row in bars] == [(0, 1), (1, 2), (2, 7)]
    assert [(row["i"], row["l_name"], row["c"]) for row in bubbles] == [
        *((0, "a", 1), (1, "a", 2), (2, "a", 3), (2, "b <i>", 4)),
    ]


def test_clients_are_named_in_tooltips_where_their_origins_have_names() -> None:
    names = ("a", "<b>", "c" * 99)
    for rows in data_of(partition_chart(replace(held(3), origins=names))):
        assert {row["i"]: row["o"] for row in rows} == {0: "a", 1: "<b>", 2: f"{'c' * 11}…{'c' * 11}"}
    values = pd.DataFrame({"personalised": [0.5, 0.75]}, [2, 1])
    [points] = data_of(before_after_chart({"test": values}, "accuracy", names))
    assert {row["i"]: row["o"][:3] for row in points} == {2: "ccc", 1: "<b>"}
    assert '"origin"' in json.dumps(before_after_chart({"test": values}, "accuracy", names).to_dict())
    assert not any("o" in row for rows in data_of(partition_chart(held(3))) for row in rows)


def test_a_large_partition_has_a_histogram_of_each_measure_that_counts_every_client() -> None:
    clients = MOST_CLIENTS + 1
    tables = [rows for rows in data_of(partition_chart(held(clients))) if "c" in rows[0]]
    assert len(tables) == len(held(3).by_client)
    assert [sum(row["c"] for row in rows) for rows in tables] == [clients] * len(tables)


@pytest.mark.parametrize("labelled", [0, 2, MOST_CLIENTS + 1])
def test_clients_without_labels_are_counted_and_left_out_of_means(labelled: int) -> None:
    rows = [{}, *[{"0": 3, "1": 1}] * labelled, {}]
    measured = Heterogeneity.from_json({"classes": ["a", "b"], "sizes": [4] * len(rows), "label_counts": rows})
    *_, divergence, note = measured.summary()
    assert divergence.split()[3:7] == (["0"] * 4 if labelled else ["nan"] * 4)
    assert note == "clients without labels, for which these are undefined: 2"
    assert mean_of(measured.counts.largest_shares()) == (0.75 if labelled else pytest.approx(np.nan, nan_ok=True))
    assert save(partition(measured), "png")
    tables = [rows for rows in data_of(partition_chart(measured)) if rows and "b" in rows[0]]
    drawn = {labelled + 2, labelled} if labelled > MOST_CLIENTS else set()
    assert {sum(row["c"] for row in rows) for rows in tables} == drawn


def test_clients_are_sorted_by_what_they_receive_and_linked_to_what_training_makes_of_it() -> None:
    values = pd.DataFrame({"personalised": [0.5, 0.75], "trained": [np.nan, 0.5], "global": [0.25, 0.25]}, [4, 1])
    chart = before_after_chart({"test": values}, "accuracy")
    assert chart is not None
    tables = data_of(chart)
    [lines] = [rows for rows in tables if "w" in rows[0]]
    [points] = [rows for rows in tables if "m_name" in rows[0]]
    assert lines == [{"i": 1, "v": 0.75, "w": 0.5}]
    assert [(row["i"], row["m_name"], row["v"]) for row in points] == [
        *((4, "as received", 0.5), (4, "global", 0.25)),
        *((1, "as received", 0.75), (1, "after local training", 0.5), (1, "global", 0.25)),
    ]
    assert chart.to_dict()["layer"][0]["encoding"]["x"]["sort"] == [4, 1]
    assert before_after_chart({"test": values * np.nan}, "accuracy") is None
