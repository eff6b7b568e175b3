"""The ids that come with examples: who wrote, spoke or recorded them, and where."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def find_column(ids: Mapping[str, NDArray[np.int64]], column: str) -> tuple[str, NDArray[np.int64]]:
    """Return the name and the ids of a column; the only one if no name is given.

    Raises
    ------
    ValueError
        If the data have no ids, no column of that name, or several to choose from.
    """
    listed = ", ".join(ids)
    if not ids:
        raise ValueError("the data have no ids for the origin of each example; use other data or another scheme")
    if column and column not in ids:
        raise ValueError(f"column = {column!r} is not an id column of the data; columns are: {listed}")
    if not column and len(ids) > 1:
        raise ValueError(f"column = '' must name one of the data's {len(ids)} id columns; columns are: {listed}")
    name = column or listed
    return name, ids[name]
