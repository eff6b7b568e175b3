"""Commutativity: whether the weights of two models can be exchanged between their inputs.

Zhou et al. 2023, Going beyond linear mode connectivity, arXiv 2307.08286, section 5.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.analysis.features.gaps import as_rows, exact, norms
from fedsim.analysis.features.sites import Site, weighted
from fedsim.analysis.features.sources import Sources
from fedsim.analysis.features.walks import Values
from fedsim.analysis.mixing.mixes import Pair

# A sum below this many rounding errors of its terms counts as 0.
ROUNDING = 32


class Commutativity:
    """Sums over examples of ``W_A H_A + W_B H_B`` and ``W_A H_B + W_B H_A``, each layer's weights and inputs.

    Notes
    -----
    The two differ by ``(W_A - W_B) (H_A - H_B)``, which takes one pass through the layer for a pair of models whose
    own passes are known, and no digits are lost where the models are close.
    """

    def __init__(self, weights: Sources, ends: Sequence[Pair]) -> None:
        self._weights, self._ends = weights, ends
        self._uses: dict[tuple[int, torch.Size], Tensor] = {}

    def sums(self, site: Site, of: dict[int, Values]) -> NDArray[np.float64]:
        """Return for each pair the six squared norms that `distances` takes, shape [pairs, 6].

        Parameters
        ----------
        of
            Values of each model that is in a pair.
        """
        if site.module is None:
            return np.zeros((len(self._ends), 6))
        own = {state: self._input_square(site, values.argument) for state, values in of.items()}
        return np.array(
            [
                [*self._exchanged(site, of[base], of[other], base, other), own[base], own[other]]
                for base, other in self._ends
            ]
        ).reshape(-1, 6)

    def distances(self, site: Site, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the three columns of a layer for all pairs, NaN if it is not linear or takes the model's inputs."""
        if site.module is None:
            missing = np.full(len(self._ends), np.nan)
            return dict.fromkeys(("commutativity", "weight_distance", "feature_distance"), missing)
        weights = np.array([self._weight_norms(site.weight, *pair) for pair in self._ends]).reshape(-1, 3)
        return {
            "commutativity": _distance(sums[:, :3]),
            "weight_distance": _distance(weights),
            "feature_distance": _distance(sums[:, 3:]),
        }

    def _exchanged(self, site: Site, first: Values, second: Values, base: int, other: int) -> list[float]:
        """Return the squared norms of the difference of both sides, of each side, and of the inputs' difference."""
        own = first.before + second.before
        if site.bias:
            bias = self._weights.entry(site.bias, base) + self._weights.entry(site.bias, other)
            own = own - (bias if isinstance(site.module, nn.Linear) else bias.view(-1, *[1] * (own.ndim - 2)))
        apart = first.argument - second.argument
        difference = weighted(site.module, self._weights.difference(site.weight, base, other), apart)
        sides = own, own - difference
        # One that is 0 is computed from what is not.
        rounding = (ROUNDING * torch.finfo(own.dtype).eps) ** 2 * max(_square(value) for value in (*sides, difference))
        squares = [square if square > rounding else 0.0 for square in map(_square, sides)]
        return [_square(difference), *squares, self._input_square(site, apart)]

    def _weight_norms(self, key: str, base: int, other: int) -> list[float]:
        first, second = (self._weights.entry(key, state).double() for state in (base, other))
        return [float(value.square().sum()) for value in (first - second, first, second)]

    def _input_square(self, site: Site, argument: Tensor) -> float:
        """Return the squared norm of a layer's input: of a convolution, as the matrix that turns it into a product."""
        if isinstance(site.module, nn.Linear):
            return _square(argument)
        key = (site.place, argument.shape[2:])
        if key not in self._uses:
            self._uses[key] = _uses(site.module, argument)
        # torch's norm over a dimension that is not the last is 40 times as slow.
        return float((exact(argument).square().sum(1).double() * self._uses[key]).sum())


def _uses(module: Any, argument: Tensor) -> Tensor:
    """Return how often a convolution takes each position of its input."""
    with torch.inference_mode(False), torch.enable_grad():
        ones = torch.ones(1, 1, *module.kernel_size, dtype=torch.float64, device=argument.device)
        plain = type(module)(
            1,
            1,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            bias=False,
            padding_mode=module.padding_mode,
            device="meta",  # where no weights are drawn
        )
        position = torch.zeros(1, 1, *argument.shape[2:], dtype=torch.float64, device=argument.device)
        position.requires_grad_()
        (uses,) = torch.autograd.grad(plain._conv_forward(position, ones, None).sum(), position)
    return uses


def _square(value: Tensor) -> float:
    # By rows, since a sum of float32 over a whole batch would lose digits.
    return float(norms(as_rows([value])[0]).square().sum())


def _distance(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distance over the product of the norms; 0 for two zeros, infinite for one."""
    difference, product = squares[:, 0], np.sqrt(squares[:, 1] * squares[:, 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((product == 0) & (difference == 0), 0.0, difference / product)
