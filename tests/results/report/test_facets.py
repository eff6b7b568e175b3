"""Lines of a figure: a colour per strategy, a panel per value of a swept setting."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results.differences import short_key
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.facets import MOST_PANELS, lines_of, named, panels_of
from tests.results.report import cases

Make = Callable[[str, Mapping[str, Any]], Group]


@pytest.fixture
def group(tiny: Callable[..., Config]) -> Make:
    result = cases.result(tiny(seed=0), np.array([[0.5, 0.5]]))
    return lambda label, settings: Group(label, settings, [result])


def test_a_strategy_has_one_colour_in_the_panels_of_a_swept_setting(group: Make) -> None:
    groups = [
        group(label, {"partition.alpha": alpha, "local.lr": lr})
        for alpha in (0.1, 1.0)
        for label, lr in (("FedAvg", 0.1), ("FedPer", 0.2))  # which tuning chose, and nobody swept
    ]
    panels = panels_of(groups)
    assert [panel.title for panel in panels] == ["alpha = 0.1", "alpha = 1.0"]
    assert [[line.name for line in panel.lines] for panel in panels] == [["FedAvg", "FedPer"]] * 2
    assert [line.look for line in panels[0].lines] == [line.look for line in panels[1].lines]
    assert len({line.look.colour for line in panels[0].lines}) == 2
    assert list(lines_of(panels)) == ["FedAvg", "FedPer"]


def test_what_has_no_panel_is_told_by_dashes_and_named(group: Make) -> None:
    groups = [
        group(label, {"partition.alpha": alpha, "local.epochs": epochs})
        for alpha in (0.1, 1.0)
        for epochs in (1, 5)
        for label in ("FedAvg", "FedPer")
    ]
    panels = panels_of(groups, ["partition.alpha"])
    assert [line.name for line in panels[0].lines] == [
        *("FedAvg, epochs = 1", "FedPer, epochs = 1", "FedAvg, epochs = 5", "FedPer, epochs = 5")
    ]
    looks = [line.look for line in panels[0].lines]
    assert looks[0].colour == looks[2].colour != looks[1].colour == looks[3].colour
    assert looks[0].dash == looks[1].dash != looks[2].dash == looks[3].dash
    assert [line.look for line in panels[1].lines] == looks
    assert panels_of(groups)[0].title == "alpha = 0.1, epochs = 1"


def test_a_sweep_of_many_values_stays_in_one_panel(group: Make) -> None:
    groups = [group("FedAvg", {"local.lr": number}) for number in range(MOST_PANELS + 1)]
    [panel] = panels_of(groups)
    assert [line.name for line in panel.lines] == [f"FedAvg, lr = {number}" for number in range(MOST_PANELS + 1)]
    assert len({line.look.colour for line in panel.lines}) == 1


def test_of_many_swept_settings_the_first_have_panels_and_the_others_are_in_names(group: Make) -> None:
    swept = [(alpha, lr) for alpha in (0.1, 1.0) for lr in range(MOST_PANELS)]
    groups = [group("FedAvg", {"partition.alpha": alpha, "local.lr": lr}) for alpha, lr in swept]
    panels = panels_of(groups)
    assert [panel.title for panel in panels] == ["alpha = 0.1", "alpha = 1.0"]
    assert list(named(panels)) == [f"FedAvg, lr = {lr}, alpha = {alpha}" for alpha, lr in swept]
    assert list(named(panels).values()) == groups


def test_a_setting_is_named_by_its_last_part_and_a_name_by_its_table() -> None:
    keys = ["model.name", "data.name", "optimizer.momentum", "local.momentum", "local.lr"]
    assert [short_key(key, keys) for key in keys] == ["model", "data", "optimizer.momentum", "local.momentum", "lr"]


def test_runs_that_nothing_tells_apart_are_lines_of_their_own(group: Make) -> None:
    [panel] = panels_of([group("FedAvg", {}), group("FedAvg", {})])
    assert len(panel.lines) == 2


@pytest.mark.parametrize(
    ("key", "message"),
    [("alpha", "did you mean 'partition.alpha'"), ("seed", "means over the seeds"), ("x.y", "for instance")],
)
def test_a_setting_that_no_run_has_is_named(key: str, message: str, group: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        panels_of([group("FedAvg", {})], [key])
