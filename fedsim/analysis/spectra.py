"""Spectra of weights: ranks and norms of each layer's matrix, and angles between the subspaces of two models."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are used
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.analysis.calls import of_models
from fedsim.analysis.mixing.mixes import Pair, pairs_once
from fedsim.analysis.mixing.names import AVERAGE
from fedsim.analysis.models import Models
from fedsim.models.asymmetry import FixedEntries, fixed_entries
from fedsim.models.layers import Layers


@of_models
def spectra(models: Models, *, bases: Sequence[int] | None = None) -> pd.DataFrame:
    """Measure the singular values of each layer's weights, written as a matrix [out, all else].

    Parameters
    ----------
    bases
        The states to measure, -1 for their average; by default all states without it.

    Returns
    -------
    pandas.DataFrame
        One row per matrix and state: ``layer``, the layer's name, or the state-dict key where it has several matrices;
        ``base``, the state;

        - ``stable_rank``: the squared Frobenius norm over the squared spectral norm;
        - ``effective_rank``: the exponential of the entropy of the singular values over their sum;
        - ``spectral_norm`` and ``frobenius_norm``;
        - ``singular_values``: a list, from the largest to the smallest.

        The ranks of a matrix of zeros are NaN.

    Raises
    ------
    ValueError
        If there is no state, one does not fit the model, or one has weights that are not finite.

    References
    ----------
    Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality, definition 1.
    """
    rows, fixed = [], fixed_entries(models.model)
    measured = {base: models.average if base == AVERAGE else models.fitted[base] for base in _checked(bases, models)}
    for layer, key in _matrices(models.model):
        for base, state in measured.items():
            name = "the average" if base == AVERAGE else f"state {base}"
            values = torch.linalg.svdvals(_matrix(state[key], name, key, fixed.get(key))).numpy()
            rows.append({"layer": layer, "base": base} | _ranks(values) | {"singular_values": values.tolist()})
    names = ["layer", "base", "stable_rank", "effective_rank", "spectral_norm", "frobenius_norm", "singular_values"]
    return pd.DataFrame(rows, columns=names)


@of_models
def principal_angles(models: Models, *, pairs: Sequence[Pair] | None = None, k: int = 10) -> pd.DataFrame:
    """Measure the angles between the subspaces of two models' leading singular vectors.

    Parameters
    ----------
    models
        Two or more models.
    pairs
        Pairs (base, other); by default all, each once.
    k
        Number of singular vectors that span a subspace, at most as many as the matrix has.

    Returns
    -------
    pandas.DataFrame
        Two rows per matrix and pair: ``layer, base, other, k, side``; ``left`` for the layer's outputs, ``right`` for
        its inputs; ``largest`` and ``mean`` of the angles, and ``angles``, a list from the largest to the smallest,
        in radians from 0 to pi / 2.

    Raises
    ------
    ValueError
        If there are fewer than two states, one does not fit the model or has weights that are not finite, a pair names
        a state that is not there, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k = {k} must be at least 1")
    fitted, ends = models.at_least(2), pairs_once(pairs, len(models))
    rows, fixed = [], fixed_entries(models.model)
    for layer, key in _matrices(models.model):
        used = dict.fromkeys(state for pair in ends for state in pair)
        matrices = {state: _matrix(fitted[state][key], f"state {state}", key, fixed.get(key)) for state in used}
        bases = {state: _bases(matrix, k) for state, matrix in matrices.items()}
        for base, other in ends:
            for side, first, second in zip(("left", "right"), bases[base], bases[other], strict=True):
                angles = scipy.linalg.subspace_angles(first, second)
                row = {"layer": layer, "base": base, "other": other, "k": first.shape[1], "side": side}
                rows.append(row | {"largest": angles[0], "mean": angles.mean(), "angles": angles.tolist()})
    return pd.DataFrame(rows, columns=["layer", "base", "other", "k", "side", "largest", "mean", "angles"])


def _checked(bases: Sequence[int] | None, models: Models) -> Sequence[int]:
    if bad := [base for base in bases or () if not AVERAGE <= base < len(models)]:
        raise ValueError(f"base = {bad[0]} is no model; there are {len(models)}, counted from 0, and -1, their average")
    return range(len(models.fitted)) if bases is None else bases


def _matrices(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the state-dict key of each weight that is a matrix or more."""
    shapes = {key: value.ndim for key, value in model.state_dict().items()}
    for layer in Layers.of(model):
        keys = [key for key in layer.parameters if shapes[key] > 1]
        yield from ((layer.name if len(keys) == 1 else key, key) for key in keys)


def _matrix(value: Tensor, state: str, key: str, fixed: FixedEntries | None) -> Tensor:
    if not value.isfinite().all():
        raise ValueError(f"{state} has {key} with values that are not finite; its spectrum is not defined")
    value = value if fixed is None else fixed(value)
    return value.detach().flatten(1).to("cpu", torch.promote_types(value.dtype, torch.float64))


def _ranks(values: NDArray[np.float64]) -> dict[str, float]:
    square, largest = float(np.square(values).sum()), float(values.max(initial=0))
    ranks = {"stable_rank": np.nan, "effective_rank": np.nan}
    if largest > 0:
        shares = values / values.sum()
        shares = shares[shares > 0]
        effective = float(np.exp(-(shares * np.log(shares)).sum()))
        ranks = {"stable_rank": square / largest**2, "effective_rank": effective}
    return ranks | {"spectral_norm": largest, "frobenius_norm": square**0.5}


def _bases(matrix: Tensor, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :k].numpy(), right[:k].T.numpy()
