from .matching.activation_matching import match_activations
from .matching.expert_matching import match_experts
from .matching.implicit_sinkhorn import match_sinkhorn
from .matching.learned_rotations import learn_rotations
from .matching.sinkhorn import sinkhorn
from .matching.straight_through import match_straight_through
from .matching.weight_matching import match_weights
from .merging.c2m3 import C2M3, merge_c2m3
from .merging.merging import Merged, merge_hierarchically, merge_many, merge_to_universe
from .repair.biases import scale_biases
from .repair.head import ClassGaussians, calibrate_head
from .repair.repairing import repair, reset_statistics
from .repair.variance import correct_variances
from .symmetries.checks import check_spec
from .symmetries.normal_form import normal_form
from .symmetries.norms import absorb_norms
from .symmetries.permutations import (
    Permutation,
    Spec,
    compose,
    identity,
    invert,
    permute,
    random_permutation,
)
from .symmetries.rotation_spec import rotation_spec
from .symmetries.spec import derive, permutation_spec

__all__ = [
    "C2M3",
    "ClassGaussians",
    "Merged",
    "Permutation",
    "Spec",
    "absorb_norms",
    "calibrate_head",
    "check_spec",
    "compose",
    "correct_variances",
    "derive",
    "identity",
    "invert",
    "learn_rotations",
    "match_activations",
    "match_experts",
    "match_sinkhorn",
    "match_straight_through",
    "match_weights",
    "merge_c2m3",
    "merge_hierarchically",
    "merge_many",
    "merge_to_universe",
    "normal_form",
    "permutation_spec",
    "permute",
    "random_permutation",
    "repair",
    "reset_statistics",
    "rotation_spec",
    "scale_biases",
    "sinkhorn",
]
