"""The form of a model in which rotations of its units are all that is left."""

from fedsim.alignment.symmetries.factors import balance_factors
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import Spec
from fedsim.models.params import Params


def normal_form(params: Params, spec: Spec) -> Params:
    """Return a model that computes the same, with norms absorbed and factors of heads balanced, as a spec names them.

    Parameters
    ----------
    params
        Whole model.

    Raises
    ------
    ValueError
        As from `absorb_norms` and `fedsim.alignment.symmetries.factors.balance_factors`.
    """
    return balance_factors(absorb_norms(params, spec.norms), spec.factors)
