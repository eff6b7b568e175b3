"""Control variates: the mean over all examples, from outcomes on a few and known values on all."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# A class with fewer examples in the sample gets no separate coefficients.
LEAST_OF_A_CLASS = 5
# Examples per coefficient.
LEAST_PER_COEFFICIENT = 4

Matrix = NDArray[np.float64]


def designs(ends: Matrix, related: Matrix, strata: NDArray[np.int64], sample: NDArray[np.int64]) -> Iterator[Matrix]:
    """Yield regressors of all examples, from few to many, up to as many as a sample can support.

    Parameters
    ----------
    ends, related
        Values known on all examples: those that matter most, and others; shapes [n, c].
    strata
        The class of each example, shape [n].
    sample
        Positions of the examples whose outcomes are known, shape [m].

    Yields
    ------
    NDArray
        Shape [n, coefficients]; they can all express a constant.
    """
    constant = np.ones((len(ends), 1))
    classes = _indicators(strata, sample)
    every = np.hstack([ends, related])
    yield np.hstack([constant, ends])
    for candidate in (
        lambda: np.hstack([constant, every]),
        lambda: np.hstack([classes, every]),
        lambda: _products(classes, np.hstack([constant, ends])),
        lambda: _products(classes, np.hstack([constant, every])),
    ):
        design = candidate()
        if design.shape[1] * LEAST_PER_COEFFICIENT <= len(sample):
            yield design


def best_design(
    candidates: Sequence[Matrix], sample: NDArray[np.int64], outcomes: Matrix, unseen: float = 0.0
) -> tuple[NDArray[np.int64], Matrix]:
    """Return which regressors estimate the mean of each outcome best, and the standard error of that estimate.

    Parameters
    ----------
    outcomes
        Outcomes on the sample, shape [m, outcomes].
    unseen
        Square to add to those of the residuals: with 1 for outcomes of 0 and 1, a sample without residuals does not
        imply that there are none.

    Returns
    -------
    chosen
        Position of the regressors, shape [outcomes].
    error
        Standard error of the mean over all n examples, 0 for a sample of all of them; shape [outcomes].
    """
    errors = np.array([_error(design, sample, outcomes, unseen) for design in candidates])
    return errors.argmin(0), errors.min(0)


def estimated_values(
    design: Matrix, sample: NDArray[np.int64], outcomes: Matrix, error: Matrix, signs: Matrix | None = None
) -> Matrix:
    """Return one value per example, whose mean estimates that of the outcomes over all examples.

    Parameters
    ----------
    error
        As from `best_design`.
    signs
        What stands for the residuals of outcomes without any, shape [m, outcomes]; by default 1 and -1 in turn.

    Returns
    -------
    NDArray
        Shape [n, outcomes]. The variance of these values over n is that of the estimate: that of drawing the n
        examples, and that of knowing only m of them.

    Notes
    -----
    A prediction for each example, and for those of the sample n / m times what it missed. The latter sums to 0, so it
    can be stretched to the error that predictions from other examples show.
    """
    m, n = len(sample), len(design)
    basis, transform = _basis(design, sample)
    coefficients = basis.T @ outcomes
    missed = outcomes - basis @ coefficients
    size = np.sqrt(np.square(missed).mean(0) * (1 / m - 1 / n))
    # What rounding leaves cannot be stretched; then any values do that sum to 0.
    signs = np.where(np.arange(m) % 2, -1.0, 1.0)[:, None] if signs is None else signs
    missed = np.where(size > 1e-6 * error, missed, signs - signs.mean(0))
    size = np.sqrt(np.square(missed).mean(0) * (1 / m - 1 / n))
    stretch = error / size
    values = design @ (transform @ coefficients)
    values[sample] += missed * (stretch * n / m)
    return values


def _indicators(strata: NDArray[np.int64], sample: NDArray[np.int64]) -> Matrix:
    """Return one column per class that is frequent in the sample, and one for all others, shape [n, columns]."""
    counts = np.bincount(strata[sample], minlength=strata.max() + 1)
    columns = (strata[:, None] == np.flatnonzero(counts >= LEAST_OF_A_CLASS)).astype(np.float64)
    others = 1 - columns.sum(1, keepdims=True)
    return np.hstack([columns, others]) if others[sample].any() else columns + others / max(1, columns.shape[1])


def _products(classes: Matrix, regressors: Matrix) -> Matrix:
    return (classes[:, :, None] * regressors[:, None, :]).reshape(len(classes), -1)


def _basis(design: Matrix, sample: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """Return an orthonormal basis of the regressors on the sample, and what maps the regressors to it."""
    known = design[sample]
    scale = np.sqrt(np.square(known).sum(0))
    scale[scale == 0] = 1
    variances, directions = np.linalg.eigh((known / scale).T @ (known / scale))
    kept = variances > 1e-10 * variances[-1]
    transform = directions[:, kept] / np.sqrt(variances[kept]) / scale[:, None]
    return known @ transform, transform


def _error(design: Matrix, sample: NDArray[np.int64], outcomes: Matrix, unseen: float) -> Matrix:
    """Return the standard error of the estimated means, from what each example misses if predicted from all others."""
    m, n = len(sample), len(design)
    basis, transform = _basis(design, sample)
    missed = outcomes - basis @ (basis.T @ outcomes)
    left = 1 - np.square(basis).sum(1)
    if left.min() < 1e-6:
        return np.full(outcomes.shape[1], np.inf)
    # Coefficients matter as far as the sample's means of the regressors are not those of all examples: much where
    # the others reach beyond it.
    shift = np.square((design.mean(0) - design[sample].mean(0)) @ transform).sum()
    square = (np.square(missed / left[:, None]).sum(0) + unseen) / m
    return np.sqrt(square * ((1 - m / n) / m + shift))
