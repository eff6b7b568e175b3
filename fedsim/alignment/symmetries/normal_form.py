"""The form that a model takes before it is matched: norms absorbed, factors of heads balanced."""

from fedsim.alignment.symmetries.factors import balance_factors
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import Spec
from fedsim.models.params import Params


def normal_form(params: Params, spec: Spec) -> Params:
    """Return a model that computes the same, with norms absorbed and factors of heads balanced, as a spec names them.

    What a spec does not name keeps its freedom, and so do heads that
    `fedsim.alignment.symmetries.factors.balance_factors` leaves as they are.

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
