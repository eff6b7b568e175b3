"""Charts of small multiples have the axes that their values need."""

import pandas as pd
import pytest

from fedsim.results.report.charts.panels import panels_chart
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples


@pytest.mark.parametrize(
    ("rounds", "ticks"), [((1, 2, 3), [1, 2, 3]), (range(5, 101, 5), [5, 25, 45, 60, 80, 100]), ((2,), [2])]
)
def test_rounds_are_whole_and_have_a_tick_once(rounds: range, ticks: list[int]) -> None:
    points = pd.DataFrame({"value": 0.5, "low": 0.4, "high": 0.6}, index=list(rounds))
    panels = {"full": [Curve("a", points, 0)], "fc": [Curve("a", points, 0)]}
    chart = panels_chart(SmallMultiples(panels, "round", "rank correlation", of_rounds=True))
    assert chart is not None
    text = chart.to_json(indent=None)
    assert text.count('"values": ' + str(ticks)) == 4  # lines and bands of two panels
    assert "tickMinStep" not in text
