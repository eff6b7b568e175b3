import json
import locale
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fedsim.config import Config, naming
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.files import write_whole
from fedsim.results.folder import RunFolder
from fedsim.results.partition_file import partition_bytes, read_partition
from fedsim.results.report import read_result
from fedsim.results.report.drawing.barriers import at_the_middle, barrier_table
from fedsim.results.report.drawing.partition import partition
from fedsim.results.report.drawing.style import save
from fedsim.results.report.pages.vega import vega_script
from tests.partitions.test_statistics import dense_of
from tests.results.report.cases import assert_drawn


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


@pytest.mark.parametrize("version", ["now", "before"])
def test_the_clients_labels_survive_the_file(version: str, tmp_path: Path) -> None:
    folder, classes = RunFolder(tmp_path), ["a", "<b>", 'c"\n']
    rows = [{"1": 3, "2": 1}, {"0": 2, "1": 1, "2": 1}, {}, {"2": 1}]
    content = {"classes": classes, "sizes": [4, 4, 2, 1], "label_counts": rows}
    folder.partition_json.write_text(json.dumps(content))
    if version == "now":
        write_whole(folder.partition, partition_bytes(read_partition(folder)))
        folder.partition_json.unlink()
    again = read_partition(folder)
    assert dense_of(again.counts) == [[0, 3, 1], [2, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert again.sizes.tolist() == [4, 4, 2, 1]
    assert again.classes == tuple(classes)


def test_the_names_of_origins_survive_the_file_and_a_file_without_them_is_as_before(tmp_path: Path) -> None:
    folder, measured = RunFolder(tmp_path), clients_with([[3, 1], [1, 1], [0, 4]])
    write_whole(folder.partition, partition_bytes(measured))
    assert pq.read_schema(folder.partition).names == ["examples", "labels", "counts"]
    assert read_partition(folder).origins == ()
    names = ("St. <b>", "Köln, 2\n", "caf\udce9")  # the last as Python reads a folder's name in Latin-1
    write_whole(folder.partition, partition_bytes(replace(measured, origins=names)))
    assert read_partition(folder).origins == (*names[:2], "caf\\udce9")


@pytest.mark.slow
@pytest.mark.parametrize("clients", [1, 61, 500])
def test_a_partition_of_any_size_is_drawn(clients: int) -> None:
    assert_drawn(partition(clients_with([[k % 7, 1] for k in range(clients)])))
    assert_drawn(partition(clients_with([[2, 1]] * clients)))


def test_a_setting_with_a_default_does_not_rename_a_run(tiny: Callable[..., Config]) -> None:
    plain = tiny()
    written_out = tiny(
        participation=1.0, local__momentum=0.0, partition={"scheme": "dirichlet", "alpha": 0.5, "min_size": 10}
    )
    assert naming.run_name(plain) == naming.run_name(written_out)
    assert naming.run_name(tiny(engine={"name": "ray", "workers": 3})) == naming.run_name(plain)
    assert naming.run_name(tiny(local__momentum=0.5)) != naming.run_name(plain)
    assert naming.run_name(tiny(seed=3)) == naming.run_name(plain).replace("-s0", "-s3")


def test_the_script_of_a_page_is_read_in_any_locale() -> None:
    expected, before = vega_script(), locale.setlocale(locale.LC_CTYPE)
    assert not expected.isascii()
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        assert vega_script.__wrapped__() == expected
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
