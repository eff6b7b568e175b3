"""Factors of attention heads, brought into the form in which only rotations of them are left.

A head computes with the products of its queries and keys, and of its values and their projection, so that any
invertible matrix may multiply the units of one while its inverse undoes this in the other. Of all such pairs, those
whose Gram matrices are equal have the smallest norm, and differ by rotations alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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

    Parameters
    ----------
    params
        Whole model.
    factors
        Factors of `fedsim.alignment.symmetries.permutations.Spec`.

    Raises
    ------
    ValueError
        If the units of a head depend on each other linearly, or an entry is not finite.

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
        grams = [_gram(balanced, side, each.heads) for side in each.sides]
        if not all(bool(gram.isfinite().all()) for gram in grams):
            raise ValueError(f"{_names(each)} has an entry that is not finite; match models that have not diverged")
        found = _moduli(*grams) if each.kind == "modulus" else _means(*grams)
        if found is None:
            raise ValueError(
                f"{_names(each)} has a head whose units depend on each other, so that no matrix balances it; match by "
                "rotations, which leave it as it is"
            )
        for matrices, side in zip(found, each.sides, strict=True):
            for rows in side:
                balanced[rows.key] = rows.multiplied(balanced, matrices)
    return balanced


def _names(factors: Factors) -> str:
    return " and ".join(dict.fromkeys(rows.key for side in factors.sides for rows in side))


def _gram(params: Mapping[str, Tensor], side: Sequence[Rows], heads: int) -> Tensor:
    """Return the inner products of the units of each head, shape [heads, width, width]."""
    return torch.stack([(own := rows.of(params, heads)) @ own.mT for rows in side]).sum((0, 2))


def _means(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the matrices of both sides, or None if a Gram matrix is singular."""
    if not all(_is_regular(torch.linalg.eigvalsh(gram)) for gram in (first, second)):
        return None
    root, inverse = _power(first, 0.5), _power(first, -0.5)
    square = inverse @ _power(root @ second @ root, 0.5) @ inverse
    return _power(square, 0.5), _power(square, -0.5)


def _moduli(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor] | None:
    squares = [gram.diagonal(dim1=1, dim2=2).unflatten(1, (2, -1)).sum(1) for gram in (first, second)]
    if not all(_is_regular(each) for each in squares):
        return None
    moduli = (squares[1] / squares[0]).pow(0.25).repeat(1, 2)
    return torch.diag_embed(moduli), torch.diag_embed(1 / moduli)


def _is_regular(values: Tensor) -> bool:
    return bool((values.amin(1) > SMALLEST * values.amax(1)).all())


def _power(matrices: Tensor, exponent: float) -> Tensor:
    """Return a power of symmetric matrices whose eigenvalues are positive."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    return vectors @ torch.diag_embed(values.clamp(min=torch.finfo(values.dtype).tiny).pow(exponent)) @ vectors.mT
