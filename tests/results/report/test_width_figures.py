"""Figures and tables of wide networks show the values of their tables, next to the controls."""

import numpy as np
import pandas as pd
import pytest

from fedsim.results.report.drawing.width import calibrated, calibrated_table, exponential
from fedsim.results.report.pages.width_sections import calibrated_sections, exponential_sections


def features(number: int = 1, other: int = 1, t: float = 0.5) -> pd.DataFrame:
    """Return a table whose cosine falls with the layer's place and the pair."""
    rows = [
        {"layer": layer, "base": base, "other": other, "t": t, "n": 50, "exponential": 0.9 - 0.1 * place - 0.2 * base}
        | {"exponential_shuffled": 0.3, "exponential_control": 0.93, "reciprocal": 0.5 * place}
        | {"additivity": 0.2, "additivity_control": 0.158}
        for place, layer in enumerate(("zeta", "alpha"))
        for base in (0, 2)
    ]
    return pd.DataFrame(rows).assign(round=number, data="server", matching="none")


def whole(number: int = 1, other: int = 1, ts: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pd.DataFrame:
    rows = [
        {"base": base, "other": other, "t": t, "n": 50, "loss": 1.0, "beta": 4.0, "loss_calibrated": 0.5}
        | {"barrier": 0.8 + base, "barrier_merged": 0.4 + base + t, "barrier_all": 0.2 + base}
        for base in (0, 2)
        for t in ts
    ]
    return pd.DataFrame(rows).assign(round=number, data="server", matching="none")


def test_the_cosine_is_drawn_next_to_both_controls_in_the_last_round() -> None:
    cosine, ratio, additivity = exponential(pd.concat([features(1), features(3)]).reset_index(drop=True)).panels
    drawn = {curve.label: curve.points for curve in cosine.curves}
    assert len(drawn) == 3
    own, shuffled, control = drawn.values()
    assert list(own.index) == ["zeta", "alpha"]
    assert own["value"].to_numpy() == pytest.approx([0.7, 0.6])
    assert own["low"].to_numpy() == pytest.approx([0.5, 0.4])
    assert set(shuffled["value"].round(9)) == {0.3}
    assert set(control["value"].round(9)) == {0.93}
    assert [curve.points["value"].iloc[0].round(9) for curve in additivity.curves] == [0.2, 0.158]
    assert ratio.mark == 1.0


def test_calibrated_barriers_are_those_next_to_halfway_by_round() -> None:
    [table] = calibrated(pd.concat([whole(1), whole(3)])).tables.values()
    assert list(table.columns) == [1, 3]
    assert table[1].to_numpy() == pytest.approx([1.8, 1.4 + 0.5, 1.2])
    assert list(table.index) == ["none", "mixed model", "all models"]


def test_sections_are_of_the_average_and_of_pairs() -> None:
    rows = pd.concat([features(other=-1), features()])
    names = {section.name: section.text for section in exponential_sections(rows, "the server's test examples")}
    assert list(names) == ["exponential", "exponential-pairs"]
    assert "0.9300 without any structure" in names["exponential"]
    rows = pd.concat([whole(other=-1, ts=(1.0,)), whole()])
    sections = {section.name: section.text for section in calibrated_sections(rows, "the server's test examples")}
    assert "at t = 1," in sections["calibrated"]
    assert "at t = 0.5," in sections["calibrated-pairs"]


def test_a_table_of_checkpoints_has_a_row_for_each_t() -> None:
    rows = whole().assign(base_name="a.pt", other_name="b.pt")
    table = calibrated_table(rows)
    assert len(table.rows) == 6
    assert table.rows[1] == ("a.pt", "b.pt", "0.5", "4.0000", "0.8000", "0.9000", "0.2000")
    average = calibrated_table(whole(other=-1, ts=(1.0,)).assign(base_name="a.pt", other_name="average"))
    assert average.rows[0][1] == "average"
    assert np.isfinite(float(average.rows[0][3]))
