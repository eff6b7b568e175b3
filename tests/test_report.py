import json
from collections.abc import Callable

import numpy as np
import pytest

from fedsim import naming
from fedsim.config import Config
from fedsim.heterogeneity import Heterogeneity
from fedsim.records import RunFolder, read_rows
from fedsim.report import read_result
from fedsim.report.barriers import at_the_middle, barrier_table
from fedsim.report.figures import format_bytes
from fedsim.report.partition import partition
from fedsim.report.results import compare, worst_mean
from fedsim.report.style import save
from fedsim.report.tables import comparison_table


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.9, 0.1, 0.5], 0.1), (np.arange(20) / 20, 0.025), (np.arange(25) / 25, 0.02), ([0.7], 0.7)],
)
def test_the_worst_tenth_has_at_least_one_client(values: list[float], expected: float) -> None:
    assert worst_mean(values) == pytest.approx(expected)


def test_the_worst_loss_is_the_largest() -> None:
    assert worst_mean([1.0, 5.0, 2.0], higher_is_better=False) == 5.0


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999 bytes"), (1000, "1 kB"), (4_740_000, "4.74 MB"), (5.2e9, "5.2 GB")]
)
def test_bytes_are_written_in_the_unit_that_suits_them(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_a_comparison_is_the_mean_over_seeds_of_plain_means(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folders = [play(tiny(seed=seed, partition={"scheme": "iid"}), f"seed{seed}") for seed in (0, 1)]
    folders.append(play(tiny(strategy={"name": "local"}, partition={"scheme": "iid"}), "local"))
    rows = compare([read_result(folder) for folder in folders])
    assert [(row.strategy, row.seeds) for row in rows] == [("full", 2), ("local", 1)]
    plain = []
    for folder in folders[:2]:
        table = read_rows(folder.metrics).query("round == 2 and model == 'personalised' and split == 'test'")
        values = table[table["metric"] == "accuracy"]["value"].to_numpy()
        plain.append((values.mean(), values.std(), values.min()))
    got = (rows[0].personalised, rows[0].spread, rows[0].worst)
    assert got == pytest.approx(np.mean(plain, axis=0))
    table = comparison_table(rows)
    assert table.rows[0][3] == f"{100 * got[0]:.1f} ± {100 * got[1]:.1f}"
    assert table.rows[1][6] == "0"


def test_settings_that_differ_between_runs_have_a_column(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    configs = [tiny(), tiny(partition={"scheme": "dirichlet", "alpha": 5.0}), tiny(local__lr=0.2)]
    results = [read_result(play(config, f"run{number}")) for number, config in enumerate(configs)]
    rows = compare(results)
    assert [dict(row.settings) for row in rows] == [
        {"local.lr": 0.1, "partition.alpha": 0.5},
        {"local.lr": 0.1, "partition.alpha": 5.0},
        {"local.lr": 0.2, "partition.alpha": 0.5},
    ]


def test_the_heat_map_is_the_mean_over_clients_with_the_full_model_first(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    result = read_result(play(tiny(rounds=4)))
    table = barrier_table(at_the_middle(result.barriers, pairs=False), "loss_mean_ends")
    assert list(table.index) == ["full", "fc1", "fc2"]
    assert list(table.columns) == [2, 4]
    rows = result.barriers.query("group == 'fc2' and round == 4 and other == -1")
    assert len(rows) == 4
    assert table.loc["fc2", 4] == pytest.approx(rows["loss_mean_ends"].mean())
    pairs = barrier_table(at_the_middle(result.barriers, pairs=True), "loss_swap_ends")
    # Two pairs, both directions; the head is the last linear layer, so its path is convex.
    assert len(result.barriers.query("group == 'fc2' and round == 4 and t == 0.5")) == 4
    assert (pairs.loc["fc2"] <= 1e-6).all()


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_figures_are_written_in_every_format(kind: str) -> None:
    start = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[kind]
    assert save(partition(clients_with([[0, 3], [2, 1], [0, 0]])), kind).startswith(start)


def clients_with(counts: list[list[int]]) -> Heterogeneity:
    rows = [{str(label): count for label, count in enumerate(row) if count} | {"2": 1} for row in counts]
    content = {"classes": ["a", "b", "c"], "sizes": [sum(row.values()) for row in rows], "label_counts": rows}
    return Heterogeneity.from_json(content)


def test_the_clients_labels_survive_the_file() -> None:
    measured = clients_with([[0, 3], [2, 1], [0, 0]])
    again = Heterogeneity.from_json(json.loads(json.dumps(measured.to_json())))
    assert again.counts.dense().tolist() == [[0, 3, 1], [2, 1, 1], [0, 0, 1]]
    assert again.sizes.tolist() == [4, 4, 1]


@pytest.mark.parametrize("clients", [1, 61, 500])
def test_a_partition_of_any_size_is_drawn(clients: int) -> None:
    assert save(partition(clients_with([[k % 7, 1] for k in range(clients)])), "png")
    assert save(partition(clients_with([[2, 1]] * clients)), "png")


def test_a_setting_with_a_default_does_not_rename_a_run(tiny: Callable[..., Config]) -> None:
    plain = tiny()
    written_out = tiny(
        participation=1.0, local__momentum=0.0, partition={"scheme": "dirichlet", "alpha": 0.5, "min_size": 10}
    )
    assert naming.run_name(plain) == naming.run_name(written_out)
    assert naming.run_name(tiny(engine={"name": "ray", "workers": 3})) == naming.run_name(plain)
    assert naming.run_name(tiny(local__momentum=0.5)) != naming.run_name(plain)
    assert naming.run_name(tiny(seed=3)) == naming.run_name(plain).replace("-s0", "-s3")
