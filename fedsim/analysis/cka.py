"""Centred kernel alignment: how similar two models' features are, up to rotation and scale.

Nguyen et al. 2021, Do wide and deep networks learn the same things?, arXiv 2010.15327.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from fedsim.analysis.calls import of_models
from fedsim.analysis.features.gaps import as_rows, exact
from fedsim.analysis.mixing.mixes import Pair, pairs_once
from fedsim.analysis.models import Models

# Examples of a batch: its matrices of inner products are compared.
BATCH = 125
# The estimator divides by n - 3.
LEAST = 4


@of_models
def cka(
    models: Models, inputs: Tensor, *, pairs: Sequence[Pair] | None = None, batch_size: int = BATCH
) -> pd.DataFrame:
    """Measure linear CKA between the features that two models have in the same layer.

    Parameters
    ----------
    models
        Two or more models; for their features, see `fedsim.analysis.connectivity.connectivity`.
    inputs
        Inputs as the model takes them, shape [n, ...], on the model's device.
    pairs
        Pairs (base, other); by default all, each once.
    batch_size
        Largest number of examples that are compared with each other; the inputs are cut into batches of about equal
        size.

    Returns
    -------
    pandas.DataFrame
        One row per layer and pair: ``layer, base, other, n, cka``: 1 if the features are equal up to an orthogonal map
        and a factor, about 0 if they are independent. The estimate is not clipped. It is NaN where a model has the same
        features for all examples.

    Raises
    ------
    ValueError
        If there are fewer than two states, one does not fit the model, a pair names a state that is not there,
        there are fewer than four inputs, or ``batch_size`` is below 8.

    Notes
    -----
    HSIC is averaged over the batches, weighted by their sizes, before one is divided by the other; each batch's is
    unbiased.

    References
    ----------
    Equations 2 and 3 of arXiv 2010.15327; the estimator is that of Song et al. 2012, Feature selection via dependence
    maximization.
    """
    models.at_least(2)
    ends = pairs_once(pairs, len(models))
    if batch_size < 2 * LEAST:
        raise ValueError(f"batch_size = {batch_size} must be at least {2 * LEAST}")
    if len(inputs) < LEAST:
        raise ValueError(f"there are {len(inputs)} inputs; the unbiased estimate needs at least {LEAST}")
    own = list(dict.fromkeys(state for pair in ends for state in pair))
    features = models.features(inputs, own)

    def measure(batch: Tensor) -> NDArray[np.float64]:
        sums = []
        for _, values in features.walk(batch):
            centred = [centred_products(rows) for rows in as_rows([each.features for each in values])]
            of = dict(zip(own, centred, strict=True))
            sums.append([[hsic(of[a], of[b]) for a, b in ((i, j), (i, i), (j, j))] for i, j in ends])
        return len(batch) * np.array(sums).reshape(len(sums), len(ends), 3)

    total = np.sum(features.map(measure, batch_size), axis=0)
    both, first, second = np.moveaxis(total, -1, 0)
    square = first * second
    scale = np.sqrt(np.where((first > 0) & (second > 0), square, np.nan))
    rows = [
        {"layer": site.name, "base": i, "other": j, "n": len(inputs), "cka": value}
        for site, of_site in zip(features.sites, both / scale, strict=True)
        for (i, j), value in zip(ends, of_site.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "base", "other", "n", "cka"])


def centred_products(rows: Tensor) -> Tensor:
    """Return the inner products of all rows, centred so that the mean of a product of two such is unbiased.

    Notes
    -----
    The U-centring of Szekely and Rizzo: the diagonal is 0 and each row sums to 0.
    """
    n = len(rows)
    # The common part changes nothing but takes digits.
    own = exact(rows)
    own = own - own.mean(0)
    products = (own @ own.T).double().fill_diagonal_(0)
    means = products.sum(1) / (n - 2)
    products = products - means[:, None] - means + products.sum() / ((n - 1) * (n - 2))
    return products.fill_diagonal_(0)


def hsic(first: Tensor, second: Tensor) -> float:
    """Return the unbiased estimate from centred products, shape [n, n]."""
    n = len(first)
    return float((first * second).sum()) / (n * (n - 3))
