"""Layers as vectors, random directions in their space, and means over several draws of them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.models.asymmetry import FixedEntries
from fedsim.models.layers import Layer
from fedsim.models.params import Params, as_kind_of, as_real
from fedsim.seeds import rng
from fedsim.training.evaluation import Evaluation

# What the perturbed models of one pass may take together; the evaluation may copy them once.
PASS_BYTES = 2**29


def vector_of(params: Params, layer: Layer) -> Tensor:
    """Return the parameters of a layer as one vector in float64, without its buffers."""
    entries = (as_real(params[key].detach()).flatten().to("cpu", torch.float64) for key in layer.parameters)
    return torch.cat([torch.zeros(0, dtype=torch.float64), *entries])


def entries_of(vector: Tensor, layer: Layer, like: Params) -> Params:
    """Return a layer's parameters from one vector, with the shapes, dtypes and devices of another model's."""
    real = {key: as_real(like[key]) for key in layer.parameters}
    parts = vector.split([value.numel() for value in real.values()])
    return {
        key: as_kind_of(part.view(value.shape), like[key])
        for part, (key, value) in zip(parts, real.items(), strict=True)
    }


def gaussian(
    layer: Layer, like: Params, seed: int, name: str, draw: int, fixed: Mapping[str, FixedEntries] | None = None
) -> Tensor:
    """Return a standard normal vector for the parameters of a layer, from a separate stream for each draw and layer.

    Parameters
    ----------
    fixed
        Fixed entries by key, as `fedsim.models.asymmetry.fixed_entries` finds them; the vector is 0 there.
    """
    size = sum(as_real(like[key]).numel() for key in layer.parameters)
    drawn = torch.from_numpy(rng(seed, name, draw, layer.name).standard_normal(size))
    free = {key: own.free for key, own in (fixed or {}).items() if key in layer.parameters}
    if not free:
        return drawn
    return drawn * vector_of({key: torch.ones_like(like[key]) for key in layer.parameters} | free, layer)


def passes(draws: int, bytes_each: int) -> Iterator[range]:
    """Yield the draws in ranges whose perturbed models fit into memory together.

    Raises
    ------
    ValueError
        If there is no draw.
    """
    if draws < 1:
        raise ValueError(f"draws = {draws} must be at least 1")
    size = max(1, PASS_BYTES // max(1, bytes_each))
    yield from (range(start, min(start + size, draws)) for start in range(0, draws, size))


def means_of(evaluation: Evaluation) -> np.ndarray:
    """Return the mean loss and the mean error, shape [2]."""
    return np.array([evaluation.loss, evaluation.error])


def over_draws(means: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean over draws of loss and error, and their standard deviations, NaN for fewer than two.

    Parameters
    ----------
    means
        Mean loss and mean error of each draw, shape [2].
    """
    loss, error = np.mean(means, axis=0) if len(means) else (np.nan, np.nan)
    loss_spread, error_spread = np.std(means, axis=0, ddof=1) if len(means) > 1 else (np.nan, np.nan)
    return {"loss": loss, "error": error, "loss_spread": loss_spread, "error_spread": error_spread}
