import subprocess
import sys
from typing import get_args

import pandas as pd
import pytest

from fedsim.analysis import Data, Models, barriers
from fedsim.analysis import models as analysis_models
from fedsim.analysis.mixing import traced
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import BY_LAYER, MEASURES, OF_CHECKPOINTS, MeasureName
from tests.analysis.cases import models


def test_every_name_has_its_row() -> None:
    assert tuple(MEASURES) == get_args(MeasureName)


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_needs_what_the_table_says(name: str) -> None:
    measure = MEASURES[name]
    model, states, inputs, targets = models(3)
    data, start = Data(inputs, targets) if measure.on_data else None, models(4)[1][-1]
    settings = Settings(data, groups="layers", against="average", start=start)
    table = measure.table(Models(model, states[: measure.least_models]), settings)
    assert len(table)
    assert ("layer" in table) == measure.by_layer
    if measure.compares:
        pairs = measure.table(Models(model, states), Settings(data, against=[(0, 2), (2, 0)], start=start))
        assert {frozenset(pair) for pair in zip(pairs["base"], pairs["other"], strict=True)} == {frozenset({0, 2})}
    if measure.least_models > 1:
        with pytest.raises(ValueError, match="this needs at least"):
            measure.table(Models(model, states[: measure.least_models - 1]), settings)
    if measure.least_examples > 1:
        few = Data(inputs[: measure.least_examples - 1], targets[: measure.least_examples - 1])
        with pytest.raises(ValueError, match=f"at least {measure.least_examples}"):
            measure.table(Models(model, states), Settings(few))


def test_models_that_can_be_measured_anywhere_are_measured_by_layer() -> None:
    assert BY_LAYER == ("connectivity", "stitching", "cka", "spectra", "prediction", "exponential")
    assert (*BY_LAYER, "calibrated") == OF_CHECKPOINTS


def test_both_ways_to_call_a_measurement_give_the_same() -> None:
    model, states, inputs, targets = models(3)
    settings = {"weights": [1.0, 2.0, 5.0], "seed": 3, "threads": 2}
    options = {"groups": ["full", "cumulative-random"], "bands": 0.9}
    plain = barriers(model, states, inputs, targets, tolerance=0.5, **settings, **options)
    built = barriers(Models(model, states, **settings), Data(inputs, targets, tolerance=0.5), **options)
    pd.testing.assert_frame_equal(plain, built)
    with pytest.raises(TypeError, match=r"barriers takes a model, states, inputs, targets, .* not 9 more"):
        barriers(model, states, inputs, targets, "full", "average", None, (), 0.9, "factors", 0)


def test_models_are_averaged_and_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for owner, name in ((analysis_models, "average_of"), (traced, "trace")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, plain=plain, name=name: calls.append(name) or plain(*args))
    model, states, inputs, targets = models(3)
    built, start = Models(model, states), states[0]
    for settings in (
        Settings(Data(inputs, targets), start=start),
        Settings(Data(inputs[:9], targets[:9]), start=start),
    ):
        for measure in MEASURES.values():
            measure.table(built, settings)
    assert sorted(calls) == ["average_of", "trace"]


def test_the_table_is_read_without_what_measures_need() -> None:
    code = "import sys, fedsim.analysis.suite; sys.exit(bool({'torch', 'numpy', 'pandas'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
