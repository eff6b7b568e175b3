"""Distances between models, layer by layer, and from where each started."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedsim.analysis.calls import of_models
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixes import Against, ends_of
from fedsim.analysis.models import Models
from fedsim.models.layers import Layer
from fedsim.models.params import Params, as_real, fit

# Entries in a block: few enough for those of some models to stay in a core's cache.
BLOCK = 2**15


@of_models
def distances(
    models: Models, *, groups: Groups = "layers", against: Against = "average", start: Params | None = None
) -> pd.DataFrame:
    """Measure distances and angles between models, over the parameters of each group; buffers do not count.

    Parameters
    ----------
    groups, against
        As in `fedsim.analysis.barriers.barriers`.
    start
        State dict that the models started from.

    Returns
    -------
    pandas.DataFrame
        One row per group and pair of models: ``group, base, other`` and

        - ``distance``: the L2 norm of the difference;
        - ``distance_rms``: over the square root of the number of parameters;
        - ``distance_relative``: over the L2 norm of the base's group;
        - ``cosine``: of the angle between the two models' groups;
        - with ``start`` ``base_from_start`` and ``other_from_start``, L2 norms of the displacements, and
          ``cosine_from_start``, of the angle between these.

        Ratios with a zero denominator are NaN.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, an argument is unknown or out of range, or a layer
        pattern matches nothing.
    """
    named = named_groups(models.layers, groups, models.seed)
    compared = models.compared(against)
    ends = ends_of(against, len(models))
    # Modulo, since the average is no longer the last where the start is.
    positions = np.array(ends).reshape(-1, 2) % len(compared)
    started = [] if start is None else [fit(models.model, start, "start")]
    moving = {name for members in named.values() for name in members}
    sums = {name: _sums(models.layers[name], compared + started, positions) for name in moving}
    none = _Sums.zero(len(ends), len(compared + started))
    tables = []
    for group, members in named.items():
        columns = _columns(sum((sums[name] for name in members), none), positions, start is not None)
        base, other = np.array(ends).reshape(-1, 2).T
        tables.append(pd.DataFrame({"group": group, "base": base, "other": other} | columns))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Sums:
    """Sums over parameters, which add up over layers.

    Parameters
    ----------
    size
        Number of parameters.
    squares
        Squared differences of each pair, shape [pairs].
    products
        Inner products of all models, shape [models, models].
    displaced
        Those of their differences to the last model, the start if there is one, shape [models, models].
    """

    size: int
    squares: Tensor
    products: Tensor
    displaced: Tensor

    @classmethod
    def zero(cls, pairs: int, models: int) -> Self:
        squares, products = (torch.zeros(shape, dtype=torch.float64) for shape in ((pairs,), (models, models)))
        return cls(0, squares, products, products)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.size + other.size,
            self.squares + other.squares,
            self.products + other.products,
            self.displaced + other.displaced,
        )


def _sums(layer: Layer, models: Sequence[Params], ends: np.ndarray) -> _Sums:
    total = _Sums.zero(len(ends), len(models))
    for rows in _blocks(layer, models):
        # Not from the products: models that are close to each other would lose all digits.
        squares = [float((rows[base] - rows[other]).square().sum()) for base, other in ends]
        moved = rows - rows[-1]
        total += _Sums(rows.shape[1], torch.tensor(squares, dtype=rows.dtype), rows @ rows.T, moved @ moved.T)
    return total


def _blocks(layer: Layer, models: Sequence[Params]) -> Iterator[Tensor]:
    """Yield the same parameters of all models, shape [models, block], float64."""
    for key in layer.parameters:
        parts = (as_real(model[key].detach()).flatten().split(BLOCK) for model in models)
        for block in zip(*parts, strict=True):
            yield torch.stack([part.to("cpu", torch.float64) for part in block])


def _columns(sums: _Sums, ends: np.ndarray, displaced: bool) -> dict[str, np.ndarray]:
    base, other = ends.T
    distance = np.sqrt(sums.squares.numpy())
    columns = {
        "distance": distance,
        "distance_rms": _ratio(distance, np.sqrt(np.full(len(ends), sums.size))),
        "distance_relative": _ratio(distance, _norms(sums.products)[base]),
        "cosine": _cosines(sums.products, base, other),
    }
    if displaced:
        norms = _norms(sums.displaced)
        columns |= {"base_from_start": norms[base], "other_from_start": norms[other]}
        columns["cosine_from_start"] = _cosines(sums.displaced, base, other)
    return columns


def _norms(products: Tensor) -> np.ndarray:
    return np.sqrt(products.diagonal().numpy())


def _cosines(products: Tensor, base: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = _norms(products)
    return np.clip(_ratio(products.numpy()[base, other], norms[base] * norms[other]), -1, 1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
