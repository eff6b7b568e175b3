"""Fixtures of the tests of reports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.results.result import Result
from tests.results.report import cases


@pytest.fixture
def build(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., Result]:
    """Return a function that makes the result of a run from the accuracies of its clients."""

    def result(accuracy: Sequence[float], **changes: Any) -> Result:
        return cases.result(tiny(**changes), [accuracy], experiment=tmp_path)

    return result
