"""The table of measures: what can be measured of models besides their barriers, and what each measure needs.

Settings are checked with it, so that nothing heavy is imported here: a measure's function is imported when it is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.lazy import Place

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.analysis.models import Models
    from fedsim.analysis.settings import Settings

MeasureName = Literal[
    "distances",
    "robustness",
    "similarity",
    "criticality",
    "interaction",
    "connectivity",
    "stitching",
    "cka",
    "spectra",
    "prediction",
    "exponential",
    "calibrated",
]


@dataclass(frozen=True)
class Measure:
    """A measurement besides the barriers, with a separate table.

    Parameters
    ----------
    on_data
        Whether it needs examples.
    mixes
        Whether mixed models are evaluated, which costs forward passes as barriers do.
    compares
        Whether models are compared with their average, and chosen pairs with each other.
    any_order
        Whether it is independent of the order of the units of each model, so that matching changes nothing.
    by_layer
        Whether its table has rows by layer, and needs only models and data, so that it can be measured for any
        checkpoints.
    whole
        Whether its table has rows of whole models, and needs only models and data, so that it can be measured for any
        checkpoints too.
    of_pairs
        Whether models are compared with each other only, and not with their average, which holds a part of each.
    least_models, least_examples
        Smallest numbers of models and examples that it can be measured with.
    """

    name: MeasureName
    on_data: bool = True
    mixes: bool = True
    compares: bool = False
    any_order: bool = False
    by_layer: bool = False
    whole: bool = False
    of_pairs: bool = False
    least_models: int = 1
    least_examples: int = 1

    def table(self, models: "Models", settings: "Settings") -> "pd.DataFrame":
        """Measure models."""
        function: Callable[[Models, Settings], pd.DataFrame]
        function = Place("fedsim.analysis.settings", f"measure_{self.name}").load()
        return function(models, settings)


MEASURES: dict[str, Measure] = {
    each.name: each
    for each in (
        Measure("distances", on_data=False, mixes=False, compares=True),
        Measure("robustness", compares=True),
        Measure("similarity", mixes=False, any_order=True, least_models=2),
        Measure("criticality", any_order=True),
        Measure("interaction", compares=True),
        Measure("connectivity", compares=True, by_layer=True),
        Measure("stitching", compares=True, by_layer=True),
        Measure("cka", mixes=False, any_order=True, by_layer=True, least_models=2, least_examples=4),
        Measure("spectra", on_data=False, mixes=False, by_layer=True),
        Measure("prediction", compares=True, by_layer=True),
        Measure("exponential", compares=True, by_layer=True, of_pairs=True, least_models=2),
        Measure("calibrated", compares=True, whole=True),
    )
}
# They mix adapters factor by factor, whatever path barriers are measured along.
BY_FACTORS = tuple(each.name for each in MEASURES.values() if each.mixes and each.compares)
BY_LAYER = tuple(each.name for each in MEASURES.values() if each.by_layer)
OF_CHECKPOINTS = tuple(each.name for each in MEASURES.values() if each.by_layer or each.whole)
