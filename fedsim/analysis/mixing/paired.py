"""Pairs of values, example by example: inputs with targets, and one model's results with another's."""

from torch import Tensor


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
