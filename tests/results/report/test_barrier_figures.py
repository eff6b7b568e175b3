import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fedsim.analysis.mixing.names import kind_of
from fedsim.results.report.drawing.barriers import at_the_middle, growing_maps, has_paths, maps, paths, window_maps
from fedsim.results.report.drawing.small_multiples import MOST_PANELS, Curve, SmallMultiples
from tests.results.report import cases


def panels(figure: Figure) -> dict[str, np.ndarray]:
    """Return the values of a figure's heat maps by their titles."""
    drawn = [axes for axes in figure.axes if axes.images and axes.get_title()]
    return {axes.get_title().replace("\n", " "): np.asarray(axes.images[0].get_array()) for axes in drawn}


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ("shallow:3", "shallow"),
        ("deep:12", "deep"),
        ("random:1", "random"),
        ("windows:2:layer1.0.conv1", "windows:2"),
        ("full", ""),
        ("layer1.0.conv1", ""),
        ("deep:er", ""),
        ("windows", ""),
    ],
)
def test_the_kind_of_a_group_is_in_its_name(group: str, kind: str) -> None:
    assert kind_of(group) == kind


def test_two_clients_are_drawn_in_both_directions_with_the_full_model_first() -> None:
    drawn = panels(maps(cases.barriers(), "loss", pairs=False).figure())
    assert list(drawn) == [
        "the average into client 0, minus the models' mean loss",
        "the average into client 1, minus the models' mean loss",
        "the average into client 0, minus its own loss",
        "the average into client 1, minus its own loss",
    ]
    # Rounds 2 and 10 in their order; 'full' comes last in the table.
    assert drawn["the average into client 1, minus its own loss"] == pytest.approx(
        np.array([[211.02, 1011.02], [211.0, 1011.0], [211.01, 1011.01]])
    )


def test_more_clients_are_drawn_as_their_mean() -> None:
    drawn = panels(maps(cases.barriers(bases=3, rounds=[4]), "error", pairs=False).figure())
    assert next(iter(drawn)) == "the average into each model, minus the models' mean error"
    assert next(iter(drawn.values()))[1] == pytest.approx(-4.11)  # percentage points


def test_pairs_are_drawn_where_they_are_nearest_to_halfway() -> None:
    rows = cases.barriers(ends=[(-1, 0.5), (-1, 1.0), (0, 0.2), (0, 0.6), (0, 1.0), (1, 0.2), (1, 0.6), (1, 1.0)])
    assert set(at_the_middle(rows, pairs=True)["t"]) == {0.6}
    assert set(at_the_middle(rows, pairs=False)["t"]) == {1.0}
    drawn = panels(maps(rows, "loss", pairs=True).figure())
    assert next(iter(drawn)) == "client 1 into client 0, minus the models' mean loss"
    assert drawn["client 0 into client 1, minus the path's ends' loss"][0] == pytest.approx([210.62, 1010.62])


def test_only_references_that_were_measured_are_drawn() -> None:
    rows = cases.barriers().drop(columns=["loss_mean_ends", "loss_swap_ends"])
    assert {title.partition("minus ")[2] for title in panels(maps(rows, "loss", pairs=False).figure())} == {
        "its own loss"
    }


def test_growing_groups_have_a_map_of_each_kind_in_the_order_of_k() -> None:
    groups = ["conv1", *(f"{kind}:{k}" for kind in ("deep", "shallow") for k in range(1, 12))]
    figure = growing_maps(cases.barriers(bases=3, groups=groups), "loss").figure()
    drawn = panels(figure)
    assert list(drawn) == [
        "first k layers of the average into each model",
        "last k layers of the average into each model",
    ]
    values = drawn["last k layers of the average into each model"]
    assert values[:, 0] == pytest.approx(211 + 0.01 * np.arange(1, 12))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [str(k) for k in range(1, 12)]


def test_windows_are_named_by_their_first_layer() -> None:
    groups = ["windows:2:a.0", "windows:2:a.1", "windows:3:a.0", "full"]
    figure = window_maps(cases.barriers(bases=1, groups=groups), "error").figure()
    assert list(panels(figure)) == [
        "2 layers of the average into each model",
        "3 layers of the average into each model",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a.0", "a.1"]


def test_paths_show_the_last_round_with_measured_bands_or_standard_errors() -> None:
    ends = [(other, t) for other in (0, 1) for t in (0.0, 0.25, 1.0)]
    rows = cases.barriers(ends=ends)
    assert has_paths(rows)
    assert not has_paths(cases.barriers())
    [line, _] = lines(paths(rows, "loss").figure(), "conv1")
    assert line.get_label() == "client 1 into client 0"
    assert line.get_ydata() == pytest.approx([1003.0, 1003.25, 1004.0])
    assert band(paths(rows, "loss").figure(), "conv1") == pytest.approx((1003.0 - 1.96 * 0.5, 1014.0 + 1.96 * 0.5))
    rows = rows.assign(loss_mean_ends_low=rows["loss_mean_ends"] - 1, loss_mean_ends_high=rows["loss_mean_ends"] + 3)
    assert band(paths(rows, "loss").figure(), "conv1") == pytest.approx((1002.0, 1017.0))


def lines(figure: Figure, group: str) -> list:
    axes = next(axes for axes in figure.axes if axes.get_title() == group)
    return [line for line in axes.lines if not str(line.get_label()).startswith("_")]


def band(figure: Figure, group: str) -> tuple[float, float]:
    """Return the lowest and the highest point of a panel's bands."""
    axes = next(axes for axes in figure.axes if axes.get_title() == group)
    heights = np.concatenate([path.vertices[:, 1] for each in axes.collections for path in each.get_paths()])
    return heights.min(), heights.max()


@pytest.mark.slow
def test_of_many_groups_those_that_move_are_drawn_and_the_full_model() -> None:
    points = pd.DataFrame({"value": [0.0, 1.0], "low": np.nan, "high": np.nan}, index=[0.0, 1.0])
    curves = {f"layer{k}": [Curve("a", points * (100 - k), 0)] for k in range(40)}
    figure = SmallMultiples(curves | {"full": [Curve("a", points * 0, 0)]}, "t", "loss").figure()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [*(f"layer{k}" for k in range(MOST_PANELS - 1)), "full"]
