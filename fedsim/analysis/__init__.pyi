from .barriers import barriers, count_evaluations, measure
from .calibration import calibrated
from .cka import cka
from .connectivity import ADDITIVITY_TS, connectivity
from .criticality import criticality
from .data import Data
from .distances import distances
from .interaction import interaction
from .layer_path import layer_path
from .models import Models
from .perturbations import perturbations
from .prediction import prediction
from .robustness import robustness
from .samples.bands import peaks
from .samples.per_example import Measurement
from .similarity import similarity
from .spectra import principal_angles, spectra
from .stitching import stitching
from .subspace import subspace_robustness

__all__ = [
    "ADDITIVITY_TS",
    "Data",
    "Measurement",
    "Models",
    "barriers",
    "calibrated",
    "cka",
    "connectivity",
    "count_evaluations",
    "criticality",
    "distances",
    "interaction",
    "layer_path",
    "measure",
    "peaks",
    "perturbations",
    "prediction",
    "principal_angles",
    "robustness",
    "similarity",
    "spectra",
    "stitching",
    "subspace_robustness",
]
