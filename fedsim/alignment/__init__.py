"""Units of models put into the same places: permutation symmetries, matching, merging and repair.

Pure functions over models and tensors, without a federated run.
"""

from fedsim.alignment.matching.activation_matching import match_activations
from fedsim.alignment.matching.straight_through import match_straight_through
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.merging.merging import Merged, merge_hierarchically, merge_many, merge_to_universe
from fedsim.alignment.repair.biases import scale_biases
from fedsim.alignment.repair.repairing import repair, reset_statistics
from fedsim.alignment.symmetries.checks import check_spec
from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Spec,
    compose,
    identity,
    invert,
    permute,
    random_permutation,
)
from fedsim.alignment.symmetries.spec import derive, permutation_spec

__all__ = [
    "Merged",
    "Permutation",
    "Spec",
    "check_spec",
    "compose",
    "derive",
    "identity",
    "invert",
    "match_activations",
    "match_straight_through",
    "match_weights",
    "merge_hierarchically",
    "merge_many",
    "merge_to_universe",
    "permutation_spec",
    "permute",
    "random_permutation",
    "repair",
    "reset_statistics",
    "scale_biases",
]
