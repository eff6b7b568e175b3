"""The losses and errors of models, example by example, and the barriers computed from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedsim.analysis.mixing.mixes import Mix
from fedsim.analysis.mixing.names import AVERAGE
from fedsim.analysis.samples.sampling import Sampling, Spread

METRICS = ("loss", "error")
REFERENCES = ("mean_ends", "swap_ends", "own_base", "chord")

# Differences in a batch: few enough to stay in the cache.
TILE = 2**15


@dataclass(frozen=True)
class Comparisons:
    """Which models each row compares, as positions in a matrix with one row per distinct model.

    Parameters
    ----------
    mixes
        One per row.
    mixed, swapped
        Positions of the mixed model, and of the base with the whole group from ``other``; shape [rows].
    shares
        Shares in the average of the models that are mixed, which come first in the matrix; they sum to 1.
    """

    mixes: Sequence[Mix]
    mixed: NDArray[np.int64]
    swapped: NDArray[np.int64]
    shares: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mixes)

    @cached_property
    def base(self) -> NDArray[np.int64]:
        """Positions of the bases, shape [rows]."""
        return np.array([mix.base for mix in self.mixes], dtype=np.int64)

    @cached_property
    def other(self) -> NDArray[np.int64]:
        """Positions of the partners, -1 for the average; shape [rows]."""
        return np.array([mix.other for mix in self.mixes], dtype=np.int64)

    @cached_property
    def t(self) -> NDArray[np.float64]:
        """Interpolation coefficients, shape [rows]."""
        return np.array([mix.t for mix in self.mixes], dtype=np.float64)

    def barriers(self, values: NDArray[np.float64], reference: str, rows: slice = slice(None)) -> NDArray[np.float64]:
        """Return the values of the mixed models minus those of a reference.

        Parameters
        ----------
        values
            Values of each distinct model, shape [models, k]: per example, or averaged, once or in each draw of a
            bootstrap.

        Returns
        -------
        NDArray
            Shape [rows, k]; NaN where a row has no such reference.
        """
        base, other, t = self.base[rows], self.other[rows], self.t[rows, None]
        own, averaged = values[base], (other == AVERAGE)[:, None]
        if reference == "own_base":
            return values[self.mixed[rows]] - own
        if reference == "swap_ends":
            return values[self.mixed[rows]] - ((1 - t) * own + t * values[self.swapped[rows]])
        if reference == "chord":
            chord = (1 - t) * own + t * values[other]
            return np.where(averaged, np.nan, values[self.mixed[rows]] - chord)
        mean = sum(share * values[position] for position, share in enumerate(self.shares))
        return values[self.mixed[rows]] - np.where(averaged, mean, (own + values[other]) / 2)


@dataclass(frozen=True)
class Measurement:
    """The barriers, and the losses that they are computed from.

    Parameters
    ----------
    table
        What `fedsim.analysis.barriers` returns.
    comparisons
        One per row of the table.
    values
        Losses (``loss``) and errors (``error``) of each distinct model and example, shape [models, n]. For a model that
        was evaluated on fewer examples, only their mean and standard error are meaningful.
    sampling
        How the examples were drawn.
    """

    table: pd.DataFrame
    comparisons: Comparisons
    values: Mapping[str, NDArray[np.float64]]
    sampling: Sampling


def tabulate(
    comparisons: Comparisons,
    values: Mapping[str, NDArray[np.float64]],
    used: NDArray[np.int64],
    sampling: Sampling,
    references: Sequence[str] = REFERENCES,
) -> pd.DataFrame:
    """Compute a row for each comparison; differences are taken per example, so that standard errors are paired.

    Parameters
    ----------
    values
        As in `Measurement`.
    used
        Number of examples that each distinct model was evaluated on, shape [models].
    sampling
        How the examples were drawn.
    """
    columns: dict[str, object] = {
        "group": [mix.group for mix in comparisons.mixes],
        "base": comparisons.base,
        "other": comparisons.other,
        "t": comparisons.t,
        "n": used[comparisons.mixed],
    }
    # The loss of a model that overflows is not finite, and so are its barriers.
    with np.errstate(invalid="ignore", over="ignore"):
        columns |= {metric: values[metric].mean(1)[comparisons.mixed] for metric in METRICS}
        for metric in METRICS:
            for reference in references:
                mean, error = np.full((2, len(comparisons)), np.nan)
                for rows, spread in spreads(comparisons, values[metric], reference, sampling):
                    mean[rows], error[rows] = spread.mean, spread.error
                columns |= {f"{metric}_{reference}": mean, f"{metric}_{reference}_se": error}
    return pd.DataFrame(columns)


def spreads(
    comparisons: Comparisons, values: NDArray[np.float64], reference: str, sampling: Sampling
) -> Iterator[tuple[slice, Spread]]:
    """Yield, some rows at a time, which rows they are, and the spread of their barriers over the examples."""
    size = max(1, TILE // values.shape[1])
    for start in range(0, len(comparisons), size):
        rows = slice(start, start + size)
        yield rows, sampling.spread(comparisons.barriers(values, reference, rows))
