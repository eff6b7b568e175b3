"""The ids that examples carry by nature: who wrote, spoke or recorded them, and where."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def find_column(ids: Mapping[str, NDArray[np.int64]], column: str) -> tuple[str, NDArray[np.int64]]:
    """Return the name and the ids of a column; without a name, of the only one.

    Raises
    ------
    ValueError
        If the data have no ids, no column of that name, or several to choose from.
    """
    listed = ", ".join(ids)
    if not ids:
        raise ValueError("the data have no ids of who or where each example is from; use other data or another scheme")
    if column and column not in ids:
        raise ValueError(f"column = {column!r} is none of the data's id columns; columns are: {listed}")
    if not column and len(ids) > 1:
        raise ValueError(f"column = '' must name one of the data's {len(ids)} id columns; columns are: {listed}")
    name = column or listed
    return name, ids[name]
