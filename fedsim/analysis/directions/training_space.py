"""The space that training went through, layer by layer, and noise split into its parts inside and outside of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fedsim.analysis.directions.random_directions import gaussian, vector_of
from fedsim.models.asymmetry import FixedEntries
from fedsim.models.layers import Layer
from fedsim.models.params import Params

# Directions along which training moved by less than this, relative to the longest, count as rounding.
NEGLIGIBLE = 1e-6

Vectors = dict[Layer, Tensor]


@dataclass(frozen=True)
class _Sums:
    """Sums over parameters, which add up over layers.

    Parameters
    ----------
    size
        Number of parameters.
    products
        Inner products of the checkpoints' differences to the origin, shape [checkpoints, checkpoints].
    noise
        Inner products with the noise of each draw, shape [checkpoints, draws].
    rounding
        Squared length that rounding errors of all checkpoints may have.
    """

    size: int
    products: Tensor
    noise: Tensor
    rounding: float

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.size + other.size,
            self.products + other.products,
            self.noise + other.noise,
            self.rounding + other.rounding,
        )


class TrainingSpace:
    """The span of the differences of checkpoints to a model, in the parameters of any layers.

    Its basis is never built: to project noise takes inner products only, which add up over layers.

    Parameters
    ----------
    origin
        The model that differences are taken from.
    draws
        Number of draws of noise, standard normal in all parameters and the same for each group that a layer is in.
    seed
        Seed of the noise.
    fixed
        Fixed entries of asymmetric weights, where there is no noise.
    """

    def __init__(
        self,
        checkpoints: Sequence[Params],
        origin: Params,
        layers: Iterable[Layer],
        *,
        draws: int,
        seed: int,
        fixed: Mapping[str, FixedEntries] | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._origin = origin
        self._draws = draws
        self._seed = seed
        self._fixed = fixed
        self._sums = {layer: self._sums_of(layer) for layer in layers}

    def split(self, layers: Sequence[Layer], draw: int) -> tuple[Vectors | None, Vectors | None]:
        """Return noise in the parameters of layers inside the space, and outside of it; None for an empty part."""
        size, rank, weights = self._projection(layers)
        inside, outside = {}, {}
        for layer in layers:
            inside[layer] = weights[:, draw] @ self._away(layer)
            outside[layer] = self._noise(layer, draw) - inside[layer]
        return inside if rank else None, outside if size > rank else None

    def rank(self, layers: Sequence[Layer]) -> int:
        """Return the dimension of the space in the parameters of some layers."""
        return self._projection(layers)[1]

    def _projection(self, layers: Sequence[Layer]) -> tuple[int, int, Tensor]:
        """Return the number of parameters, the rank, and the weights of checkpoints in the noise inside the space."""
        total = sum((self._sums[layer] for layer in layers), self._none())
        squares, vectors = torch.linalg.eigh(total.products)
        kept = squares > max(NEGLIGIBLE**2 * float(squares.max()), total.rounding)
        squares, vectors = squares[kept], vectors[:, kept]
        return total.size, len(squares), vectors @ ((vectors.T @ total.noise) / squares[:, None])

    def _sums_of(self, layer: Layer) -> _Sums:
        away = self._away(layer)
        noise = torch.stack([away @ self._noise(layer, draw) for draw in range(self._draws)], 1)
        precision = max((torch.finfo(self._origin[key].dtype).eps for key in layer.parameters), default=0.0)
        rounding = len(away) * precision**2 * float(vector_of(self._origin, layer).square().sum())
        return _Sums(away.shape[1], away @ away.T, noise, rounding)

    def _none(self) -> _Sums:
        count = len(self._checkpoints)
        products, noise = (torch.zeros(count, width, dtype=torch.float64) for width in (count, self._draws))
        return _Sums(0, products, noise, 0.0)

    def _away(self, layer: Layer) -> Tensor:
        """Return the differences of a layer to the origin, shape [checkpoints, parameters]."""
        away = torch.stack([vector_of(checkpoint, layer) for checkpoint in self._checkpoints])
        return away.sub_(vector_of(self._origin, layer))

    def _noise(self, layer: Layer, draw: int) -> Tensor:
        return gaussian(layer, self._origin, self._seed, "subspace", draw, self._fixed)
