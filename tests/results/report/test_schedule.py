"""Which layers travelled when."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.config import Config
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from fedsim.results.report.pages.schedule import schedule_sections, sent_layers

QUIET = {"rounds": 3, "barriers": {"every": 0}}


def test_a_cycle_sends_one_layer_after_the_other(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    result = read_result(play(tiny(**QUIET, strategy={"name": "layer_cycle"})))
    assert sent_layers(result).to_dict("index") == {"fc1": {1: 1.0, 2: 0.0, 3: 1.0}, "fc2": {1: 0.0, 2: 1.0, 3: 0.0}}
    assert [section.name for section in schedule_sections(result)] == ["schedule"]


def test_a_share_of_the_clients_that_trained_is_shown(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(**QUIET, participation=0.5, strategy={"name": "fedlp", "rate": 0.5})
    sent = sent_layers(read_result(play(config)))
    assert set(sent.to_numpy().ravel()) <= {0.0, 0.5, 1.0}
    assert 0.5 in sent.to_numpy()


@pytest.mark.parametrize("name", ["full", "local"])
def test_where_all_rounds_are_alike_there_is_nothing_to_show(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    assert schedule_sections(read_result(play(tiny(**QUIET, strategy={"name": name})))) == []


def test_a_gate_shows_the_mean_barriers_that_it_decided_by(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    strategy = {"name": "barrier_gated", "every": 2, "threshold": 0.17}
    result = read_result(play(tiny(**QUIET, strategy=strategy)))
    *_, section = schedule_sections(result)
    assert section.name == "gate"
    [image] = [image for axes in section.figure.axes for image in axes.images]
    rows = result.measured("gate").query("layer == 'fc2' and round == 3")
    expected = (rows["barrier"] * rows["weight"]).sum() / rows["weight"].sum()
    assert image.get_array()[1, 1] == pytest.approx(expected)
