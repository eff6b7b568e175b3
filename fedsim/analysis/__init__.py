"""What averaging does to models: pure functions over models and tensors, without a federated run."""

from fedsim.analysis.bands import peaks
from fedsim.analysis.barriers import barriers, count_evaluations, measure
from fedsim.analysis.criticality import criticality
from fedsim.analysis.distances import distances
from fedsim.analysis.interaction import interaction
from fedsim.analysis.measurement import Measurement
from fedsim.analysis.robustness import robustness
from fedsim.analysis.similarity import similarity
from fedsim.analysis.subspace import subspace_robustness

__all__ = [
    "Measurement",
    "barriers",
    "count_evaluations",
    "criticality",
    "distances",
    "interaction",
    "measure",
    "peaks",
    "robustness",
    "similarity",
    "subspace_robustness",
]
