"""Fixtures of the tests of reports."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from altair.vegalite.v6.api import ChartType

from fedsim.config import Config
from fedsim.results.report.charts.embedded import embedded
from fedsim.results.report.pages import html
from fedsim.results.result import Result
from tests.results.report import cases


@pytest.fixture(autouse=True)
def compares_charts_with_their_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare each chart of a page with the schema of Vega-Lite, which pages leave out to be written sooner."""

    def checked(charts: Mapping[str, ChartType]) -> dict[str, Any]:
        for chart in charts.values():
            chart.to_dict(validate=True)
        return embedded(charts)

    monkeypatch.setattr(html, "embedded", checked)


@pytest.fixture
def build(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., Result]:
    """Return a function that makes the result of a run from the accuracies of its clients."""

    def result(accuracy: Sequence[float], **changes: Any) -> Result:
        return cases.result(tiny(**changes), [accuracy], experiment=tmp_path)

    return result
