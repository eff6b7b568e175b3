"""The variance of an average's weights, which averaging shrinks where models disagree, given back without data."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fedsim.alignment.merging.shares import shares_of
from fedsim.models.asymmetry import fixed_entries, free_parts, with_free_part
from fedsim.models.params import Params, as_kind_of, as_real, fit, fit_all
from fedsim.models.variance import variances

EPSILON = 1e-4  # in the authors' code


def correct_variances(
    model: nn.Module,
    merged: Params,
    members: Sequence[Params],
    *,
    weights: Sequence[float] | None = None,
    epsilon: float = EPSILON,
) -> Params:
    """Return an average, each tensor of which is spread about its mean as far as those of its members.

    A tensor W becomes ``mean(W) + (W - mean(W)) * sqrt((v + epsilon) / (var(W) + epsilon))``, where v is the members'
    weighted mean variance. Only parameters change; running statistics, tensors of one entry, and what is fixed in an
    asymmetric model do not.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed.
    merged
        All entries of the members' weighted average.
    members
        All entries of the merged models.
    weights
        One positive number per member (default: equal, as in the paper).
    epsilon
        Keeps a tensor that hardly varies from being scaled; the result's variance is v where both are far above it.

    Raises
    ------
    ValueError
        If an entry does not match the model, the weights do not match the members, or ``epsilon`` is negative.

    Notes
    -----
    The average of N independent models has 1/N of their variance, and activations that shrink from layer to layer: what
    `fedsim.alignment.repair.repairing.repair` corrects with inputs is corrected here without any. The paper has no
    server: there, a node may give the variances of its own model a share of v.

    References
    ----------
    Tian et al. 2024, Vanishing variance problem in fully decentralized neural-network systems, arXiv 2404.04616.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon = {epsilon} must be at least 0")
    shares = shares_of(members, weights)
    params = fit(model, merged, "the merged model")
    keys = [key for key, _ in model.named_parameters() if key in params]
    fixed = fixed_entries(model)
    goals: dict[str, float] = {}
    total = 0.0
    for share, member in zip(shares, fit_all(model, members, 1), strict=True):
        total += share
        for key, value in variances(free_parts(member, fixed), keys).items():
            before = goals.get(key, value)
            goals[key] = before + share / total * (value - before)  # equal values are a fixed point
    free = free_parts(params, fixed)
    for key, value in variances(free, keys).items():
        scaled = _scaled(free[key], value, goals[key], epsilon)
        params[key] = with_free_part(params[key], scaled, fixed.get(key))
    return params


def spread_to(value: Tensor, goal: float, epsilon: float = EPSILON) -> Tensor:
    """Return a tensor whose entries have another variance about their mean, as in `correct_variances`."""
    return _scaled(value, variances({"": value}, [""])[""], goal, epsilon)


def _scaled(value: Tensor, variance: float, goal: float, epsilon: float) -> Tensor:
    if variance == goal or variance + epsilon == 0:
        return value
    factor = math.sqrt((goal + epsilon) / (variance + epsilon))
    real = as_real(value).double()
    return as_kind_of(real.mean() + factor * (real - real.mean()), value)
