"""The measures of `fedsim.analysis.suite`, called with common settings."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fedsim.analysis.calibration import calibrated
from fedsim.analysis.cka import cka
from fedsim.analysis.connectivity import connectivity
from fedsim.analysis.criticality import criticality
from fedsim.analysis.data import Data
from fedsim.analysis.distances import distances
from fedsim.analysis.features.exponential import COLUMNS, no_structure
from fedsim.analysis.interaction import interaction
from fedsim.analysis.mixing.groups import Groups
from fedsim.analysis.mixing.mixes import Against, halfway
from fedsim.analysis.models import Models
from fedsim.analysis.prediction import prediction
from fedsim.analysis.robustness import robustness
from fedsim.analysis.similarity import similarity
from fedsim.analysis.spectra import spectra
from fedsim.analysis.stitching import stitching
from fedsim.models.params import Params


@dataclass(frozen=True)
class Settings:
    """What several measurements have in common.

    Parameters
    ----------
    data
        Examples; measures of weights alone need none.
    groups, against, ts
        As in `fedsim.analysis.barriers`. Features are compared at those ``ts`` that are neither 0 nor 1, or halfway if
        there are none.
    start
        State dict that the models started from, if they have one.
    bases
        Models whose weights are measured, -1 for the average; by default all states without it.
    """

    data: Data | None = None
    groups: Groups = "layers"
    against: Against = "average"
    ts: Sequence[float] | None = None
    start: Params | None = None
    bases: Sequence[int] | None = None

    @property
    def examples(self) -> Data:
        """The examples, which must have been given."""
        assert self.data is not None
        return self.data

    @property
    def against_once(self) -> Against:
        """What models are compared with if both directions of a pair give the same."""
        if isinstance(self.against, str):
            return self.against
        first = {frozenset(pair): pair for pair in reversed(self.against)}
        return list(reversed(first.values()))


def measure_distances(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.distances`."""
    return distances(models, groups=settings.groups, against=settings.against, start=settings.start)


def measure_robustness(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.robustness`."""
    return robustness(models, settings.examples, groups=settings.groups, against=settings.against)


def measure_similarity(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.similarity`."""
    return similarity(models, settings.examples.inputs)


def measure_criticality(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.criticality`."""
    assert settings.start is not None
    return criticality(models, settings.start, settings.examples, groups=settings.groups)


def measure_interaction(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.interaction`."""
    return interaction(models, settings.examples, against=settings.against)


def measure_connectivity(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.connectivity`."""
    return connectivity(models, settings.examples.inputs, against=settings.against_once, ts=halfway(settings.ts))


def measure_exponential(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure the columns of `fedsim.analysis.connectivity` about disjoint units, next to what no structure gives.

    They are of pairs of models; all pairs where models are to be compared with their average, which has every unit.
    """
    inputs, ts = settings.examples.inputs, halfway(settings.ts)
    against = "pairs" if settings.against == "average" else settings.against_once
    table = connectivity(models, inputs, against=against, ts=ts, exponential=True)
    table = table[["layer", "base", "other", "t", "n", *COLUMNS, "depth", "additivity"]]
    cosines = [no_structure(t, depth).cosine for t, depth in zip(table["t"], table["depth"], strict=True)]
    # Additivity is measured halfway, whatever t is.
    return table.assign(exponential_control=cosines, additivity_control=no_structure(0.5).distance)


def measure_calibrated(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.calibrated`."""
    # With the base's statistics, both directions of a pair are different models.
    against = settings.against if models.normalisation == "base" else settings.against_once
    return calibrated(models, settings.examples, against=against, ts=settings.ts)


def measure_stitching(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.stitching`."""
    return stitching(models, settings.examples, against=settings.against)


def measure_cka(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.cka`."""
    return cka(models, settings.examples.inputs)


def measure_spectra(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.spectra`."""
    return spectra(models, bases=settings.bases)


def measure_prediction(models: Models, settings: Settings) -> pd.DataFrame:
    """Measure `fedsim.analysis.prediction`."""
    return prediction(models, settings.examples, against=settings.against)
