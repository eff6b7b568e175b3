"""Data sets: ``DATA`` maps a name to its function.

A data set is a function ``data_set(*, data_dir, options) -> Dataset`` that reads everything into memory once.
"""

from collections.abc import Callable

from fedsim.data.dataset import Dataset, Examples
from fedsim.data.digits import digits
from fedsim.data.fashion_mnist import fashion_mnist

__all__ = ["DATA", "Dataset", "Examples"]

DATA: dict[str, Callable[..., Dataset]] = {"digits": digits, "fashion-mnist": fashion_mnist}
