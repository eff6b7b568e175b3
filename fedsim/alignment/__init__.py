"""Units of models put into the same places: permutation symmetries, matching, merging and repair.

Pure functions over models and tensors, without a federated run.
"""

from fedsim.alignment.activation_matching import match_activations
from fedsim.alignment.biases import scale_biases
from fedsim.alignment.checks import check_spec
from fedsim.alignment.merging import Merged, merge_hierarchically, merge_many, merge_to_universe
from fedsim.alignment.permutations import Permutation, Spec, compose, identity, invert, permute, random_permutation
from fedsim.alignment.repairing import repair, reset_statistics
from fedsim.alignment.spec import derive, permutation_spec
from fedsim.alignment.straight_through import match_straight_through
from fedsim.alignment.weight_matching import match_weights

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
