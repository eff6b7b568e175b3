"""What averaging does to models: pure functions over models and tensors, without a federated run."""

from fedsim.analysis.barriers import barriers, count_evaluations
from fedsim.analysis.criticality import criticality
from fedsim.analysis.distances import distances
from fedsim.analysis.interaction import interaction
from fedsim.analysis.robustness import robustness
from fedsim.analysis.similarity import similarity
from fedsim.analysis.subspace import subspace_robustness

__all__ = [
    "barriers",
    "count_evaluations",
    "criticality",
    "distances",
    "interaction",
    "robustness",
    "similarity",
    "subspace_robustness",
]
