"""Paired differences: what changes from one model to another, example by example."""

from torch import Tensor


def mean_and_error(differences: Tensor) -> tuple[float, float]:
    """Return the mean of differences, shape [n], and its standard error, NaN for a single example."""
    n = len(differences)
    return float(differences.mean()), float(differences.std() / n**0.5) if n > 1 else float("nan")
