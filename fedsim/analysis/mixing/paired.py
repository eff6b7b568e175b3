"""Pairs of values, example by example: inputs with targets, and one model's results with another's."""

from torch import Tensor

from fedsim.analysis.samples.sampling import Sampling


def check_paired(inputs: Tensor, targets: Tensor) -> None:
    """Check that there are examples.

    Raises
    ------
    ValueError
        If there are no inputs, or not as many targets.
    """
    if not len(inputs):
        raise ValueError("there are no inputs; give at least one")
    if len(targets) != len(inputs):
        raise ValueError(f"there are {len(targets)} targets for {len(inputs)} inputs; give one for each")


def mean_and_error(differences: Tensor, sampling: Sampling | None = None) -> tuple[float, float]:
    """Return the mean of differences, shape [n], and its standard error, NaN for a single example.

    Parameters
    ----------
    sampling
        How the examples were drawn: by default freely.
    """
    spread = (sampling or Sampling.freely(len(differences))).spread(differences[None].numpy())
    return float(spread.mean[0]), float(spread.error[0])
