"""Factors of attention heads, brought into the form in which all that is left of their freedom is rotations.

A head computes with the products of its queries and keys, and of its values and their projection, so that any
invertible matrix may multiply the units of one while its inverse undoes this in the other. Of all such pairs, those
whose Gram matrices are equal have the smallest norm, and differ by rotations alone.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Units of a head whose Gram matrix has a smaller eigenvalue, relative to the largest, count as dependent.
SMALLEST = 1e-12


@dataclass(frozen=True)
class Rows:
    """The rows of one tensor that are units of heads.

    Parameters
    ----------
    dimension
        Dimension along which the rows are.
    start, size
        Where they begin, and their number.
    copies
        Consecutive parts of a head's rows that one matrix multiplies, as the query heads of a key head.
    """

    key: str
    dimension: int
    start: int
    size: int
    copies: int = 1

    def of(self, params: Mapping[str, Tensor], heads: int) -> Tensor:
        """Return the rows in float64, shape [heads, copies, width, ...]."""
        rows = params[self.key].narrow(self.dimension, self.start, self.size).movedim(self.dimension, 0)
        return rows.double().reshape(heads, self.copies, self.size // heads // self.copies, -1)

    def multiplied(self, params: Mapping[str, Tensor], matrices: Tensor) -> Tensor:
        """Return the tensor with the rows of each head multiplied by a matrix, shape [heads, width, width]."""
        value = params[self.key].clone()
        part = value.narrow(self.dimension, self.start, self.size).movedim(self.dimension, 0)
        part.copy_((matrices[:, None] @ self.of(params, len(matrices))).reshape(part.shape))
        return value


@dataclass(frozen=True)
class Factors:
    """Two factors of each head of one layer, of which the model computes products alone.

    Parameters
    ----------
    kind
        Which matrices may go from one to the other: all that are ``invertible``, or one ``modulus`` per pair of units
        half a width apart, which rotary position embeddings allow.
    heads
        Number of heads, or of key heads.
    sides
        The rows of one factor, and those of the other.
    """

    kind: Literal["invertible", "modulus"]
    heads: int
    sides: tuple[tuple[Rows, ...], tuple[Rows, ...]]


def balance_factors(params: Mapping[str, Tensor], factors: Sequence[Factors]) -> dict[str, Tensor]:
    """Return a model that computes the same, and whose factors have equal Gram matrices; all shapes stay.

    A head whose units depend on each other linearly in one of its factors, which no matrix balances, stays as it is. A
    warning names its tensors, once in a process.

    Parameters
    ----------
    params
        Whole model.
    factors
        Factors of `fedsim.alignment.symmetries.permutations.Spec`.

    Raises
    ------
    ValueError
        If an entry is not finite.

    Notes
    -----
    With Gram matrices A and B of the units of both factors, the units become ``R Q`` and ``R^-1 K`` with a symmetric R
    and ``R A R = R^-1 B R^-1``, whose square is the geometric mean of ``A^-1`` and B. For pairs of units it is a number
    with ``r^4 = |k|^2 / |q|^2``. Factors of a model that was multiplied by any invertible matrices differ by a rotation
    after this, so that rotations find them; Tran et al. descend to the matrix from the best rotation.

    References
    ----------
    Tran et al. 2026, Functional equivalence in attention, arXiv 2606.17830.
    """
    balanced = dict(params)
    for each in factors:
        first, second = _grams(balanced, each)
        regular = _regular(each, first, second)
        if not bool(regular.all()):
            warn_once(", ".join(dict.fromkeys(rows.key for side in each.sides for rows in side)))
        found = (_moduli if each.kind == "modulus" else _means)(first, second, regular)
        for matrices, side in zip(found, each.sides, strict=True):
            for rows in side:
                balanced[rows.key] = rows.multiplied(balanced, matrices)
    return balanced


def have_balance(params: Mapping[str, Tensor], factors: Factors) -> bool:
    """Return whether matrices balance all heads of one layer.

    Raises
    ------
    ValueError
        If an entry is not finite.
    """
    return bool(_regular(factors, *_grams(params, factors)).all())


@cache
def warn_once(names: str) -> None:
    """Warn that a head of some tensors is not balanced."""
    logger.warning("a head of %s is matched up to rotations only, as its units depend on each other linearly", names)


def _grams(params: Mapping[str, Tensor], factors: Factors) -> list[Tensor]:
    """Return the inner products of the units of each head, for each side, shape [heads, width, width]."""
    return [torch.stack([_gram(params, rows, factors.heads) for rows in side]).sum(0) for side in factors.sides]


def _gram(params: Mapping[str, Tensor], rows: Rows, heads: int) -> Tensor:
    own = rows.of(params, heads)
    if not bool((found := (own @ own.mT).sum(1)).isfinite().all()):
        raise ValueError(f"{rows.key} has an entry that is not finite; match models that have not diverged")
    return found


def _regular(factors: Factors, first: Tensor, second: Tensor) -> Tensor:
    """Return which heads, shape [heads, 1], or which pairs of units, shape [heads, pairs], have a balance."""
    if factors.kind == "modulus":
        sizes = torch.stack([_squares(first), _squares(second)])
        return (sizes > SMALLEST * sizes.amax(2, keepdim=True)).all(0)
    values = torch.linalg.eigvalsh(torch.stack([first, second]))
    return (values[..., :1] > SMALLEST * values[..., -1:]).all(0)


def _means(first: Tensor, second: Tensor, regular: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices of both sides, which are the identity for heads without a balance."""
    same = torch.eye(first.shape[1]).to(first)
    a, b = (torch.where(regular[..., None], gram, same) for gram in (first, second))
    root, inverse = _power(a, 0.5), _power(a, -0.5)
    square = inverse @ _power(root @ b @ root, 0.5) @ inverse
    found = (_power(square, exponent) for exponent in (0.5, -0.5))
    one, other = (torch.where(regular[..., None], each, same) for each in found)
    return one, other


def _moduli(first: Tensor, second: Tensor, regular: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices of both sides, which leave pairs without a balance as they are."""
    moduli = torch.where(regular, _squares(second) / _squares(first), 1).pow(0.25).repeat(1, 2)
    return torch.diag_embed(moduli), torch.diag_embed(1 / moduli)


def _squares(gram: Tensor) -> Tensor:
    """Return the squared length of each pair of units half a width apart, shape [heads, pairs]."""
    return gram.diagonal(dim1=1, dim2=2).unflatten(1, (2, -1)).sum(1)


def _power(matrices: Tensor, exponent: float) -> Tensor:
    """Return a power of symmetric matrices whose eigenvalues are positive."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    return vectors @ torch.diag_embed(values.clamp(min=torch.finfo(values.dtype).tiny).pow(exponent)) @ vectors.mT
