"""Rotations of the units within blocks, which go with the orders of a permutation.

In a permutation, an order puts units in their places, and matrices under `rotation_key` of its name, shape
[blocks, width, width], then rotate the units of each block, which follow each other: new units are the matrix times the
old ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.alignment.frames import closest_orthogonal

SUFFIX = ":rotation"
Kind = Literal["orthogonal", "centred", "phases"]


@dataclass(frozen=True)
class Rotation:
    """A group of matrices that can rotate the units of each block without changing what the model computes.

    Parameters
    ----------
    kind
        All ``orthogonal`` matrices; those that do not change the vector of ones (``centred``), which layer
        normalisation allows; or rotations of the plane of each pair of units half a width apart (``phases``), which
        rotary position embeddings allow.
    copies
        Number of consecutive parts of a block that are rotated by the same matrix, by the name of the order: 1, or for
        grouped queries the number of query heads per key head.
    """

    kind: Kind
    copies: Mapping[str, int]


def rotation_key(order: str) -> str:
    """Return the key of the matrices that go with an order."""
    return order + SUFFIX


def is_rotation(key: str) -> bool:
    """Return whether a key of a permutation is that of matrices, not of an order."""
    return key.endswith(SUFFIX)


def identities(units: int, width: int) -> Tensor:
    """Return matrices that rotate nothing, shape [units / width, width, width]."""
    return torch.eye(width, dtype=torch.float64).repeat(units // width, 1, 1)


def is_identity(key: str, value: Tensor) -> bool:
    """Return whether an order, or the matrices of one, leave all units as they are."""
    if is_rotation(key):
        return torch.equal(value.cpu(), identities(value.shape[0] * value.shape[1], value.shape[1]).to(value.dtype))
    return torch.equal(value.cpu(), torch.arange(len(value)))


def turned(key: str, value: Tensor) -> float:
    """Return the share of units that are not in place; for matrices R of size d, the mean of ``1 - trace(R) / d``.

    For permutation matrices both are the same.
    """
    if is_rotation(key):
        return float(1 - value.double().diagonal(dim1=1, dim2=2).mean())
    return float((value != torch.arange(len(value))).double().mean())


def rotated(value: Tensor, dimension: int, parts: Sequence[tuple[int, Tensor | None]]) -> Tensor:
    """Return a tensor with rotated units along one dimension.

    Parameters
    ----------
    parts
        Size of each part along the dimension, and the matrices that rotate its units, if any; a unit is as many
        consecutive entries as there are in the part for each row of a matrix.
    """
    pieces = []
    rows = value.movedim(dimension, 0)
    for (_, matrices), piece in zip(parts, rows.split([size for size, _ in parts]), strict=True):
        if matrices is None:
            pieces.append(piece)
        else:
            turning = matrices.to(value.device, torch.float64)
            units = piece.double().reshape(*turning.shape[:2], -1)
            pieces.append((turning @ units).reshape(piece.shape).to(value.dtype))
    return torch.cat(pieces).movedim(0, dimension).contiguous()


def conjugated(matrices: Tensor, order: Tensor) -> Tensor:
    """Return the matrices that, after an order, do what these do before it; the order keeps blocks together."""
    width = matrices.shape[1]
    places = order.to(matrices.device).view(-1, width)
    blocks, inside = places[:, 0] // width, places % width
    return matrices[blocks[:, None, None], inside[:, :, None], inside[:, None, :]]


def random_rotations(kind: Kind, blocks: int, width: int, rng: np.random.Generator) -> Tensor:
    """Draw a matrix per block, uniformly at random; shape [blocks, width, width]."""
    noise = torch.from_numpy(rng.standard_normal((blocks, width, width)))
    return best_rotations(kind, noise)


def best_rotations(kind: Kind, gains: Tensor) -> Tensor:
    """Return the matrices R of a kind with the largest sum of products with others; both of shape [..., width, width].

    Notes
    -----
    Orthogonal ones are the polar factor U V' of G = U S V' (Procrustes). With B an orthonormal basis of the complement
    of the vector of ones, centred ones are ``11'/d + B U V' B'`` with U S V' = B' G B. A phase is the argument of the
    sum of ``conj(b) a`` over the entries of a pair, as a complex number, of both models.
    """
    if kind == "phases":
        return _of_angles(_numbers(gains).angle())
    if kind == "orthogonal":
        return closest_orthogonal(gains)
    basis = _complement_of_ones(gains.shape[-1]).to(gains)
    return 1 / gains.shape[-1] + basis @ closest_orthogonal(basis.T @ gains @ basis) @ basis.T


def rotation_from(kind: Kind, free: Tensor) -> Tensor:
    """Return a matrix of a kind for each square one, shape [..., width, width]: smooth, and the identity at 0."""
    if kind == "phases":
        half = free.shape[-1] // 2
        return _of_angles(free[..., :half, :half].diagonal(dim1=-2, dim2=-1))
    if kind == "orthogonal":
        return torch.matrix_exp(free - free.mT)
    basis = _complement_of_ones(free.shape[-1]).to(free)
    return 1 / free.shape[-1] + basis @ torch.matrix_exp(basis.T @ (free - free.mT) @ basis) @ basis.T


def largest_gains(kind: Kind, gains: Tensor) -> Tensor:
    """Return the sums of products that `best_rotations` reach, shape [...]."""
    if kind == "phases":
        return _numbers(gains).abs().sum(-1)
    if kind == "orthogonal":
        return torch.linalg.svdvals(gains).sum(-1)
    basis = _complement_of_ones(gains.shape[-1]).to(gains)
    return torch.linalg.svdvals(basis.T @ gains @ basis).sum(-1) + gains.mean(-1).sum(-1)


def _of_angles(angles: Tensor) -> Tensor:
    cos, sin = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())
    return torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)


def _numbers(gains: Tensor) -> Tensor:
    """Return the sums of ``conj(b) a`` over the entries of each pair, as complex numbers, shape [..., width / 2]."""
    half = gains.shape[-1] // 2
    corners = [gains[..., i * half : (i + 1) * half, j * half : (j + 1) * half] for i in (0, 1) for j in (0, 1)]
    top, right, left, bottom = (each.diagonal(dim1=-2, dim2=-1) for each in corners)
    return torch.complex(top + bottom, left - right)


def _complement_of_ones(size: int) -> Tensor:
    """Return an orthonormal basis of the vectors that sum to 0, shape [size, size - 1]."""
    ones = torch.ones(size, 1, dtype=torch.float64)
    return torch.linalg.qr(ones, mode="complete").Q[:, 1:]
