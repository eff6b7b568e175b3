"""What averaging does to models: pure functions over models and tensors, without a federated run."""

from fedsim.analysis.barriers import barriers, count_evaluations, measure
from fedsim.analysis.cka import cka
from fedsim.analysis.connectivity import ADDITIVITY_TS, connectivity
from fedsim.analysis.criticality import criticality
from fedsim.analysis.distances import distances
from fedsim.analysis.interaction import interaction
from fedsim.analysis.perturbations import perturbations
from fedsim.analysis.robustness import robustness
from fedsim.analysis.samples.bands import peaks
from fedsim.analysis.samples.measurement import Measurement
from fedsim.analysis.similarity import similarity
from fedsim.analysis.spectra import principal_angles, spectra
from fedsim.analysis.stitching import stitching
from fedsim.analysis.subspace import subspace_robustness

__all__ = [
    "ADDITIVITY_TS",
    "Measurement",
    "barriers",
    "cka",
    "connectivity",
    "count_evaluations",
    "criticality",
    "distances",
    "interaction",
    "measure",
    "peaks",
    "perturbations",
    "principal_angles",
    "robustness",
    "similarity",
    "spectra",
    "stitching",
    "subspace_robustness",
]
