"""Permutations of units: which entries of a model belong to which unit, and models with permuted units.

A permutation is a dict of orders, ``{name: indices}``: unit ``i`` of the new model is unit ``indices[i]`` of the old.
Orders are int64 tensors and travel like parameters. Where units can also be rotated, it has matrices too: see
`fedsim.alignment.symmetries.rotations`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.alignment.symmetries.factors import Factors
from fedsim.alignment.symmetries.norms import Norm, check_absorbed
from fedsim.alignment.symmetries.rotations import (
    Rotation,
    conjugated,
    identities,
    is_identity,
    is_rotation,
    random_rotations,
    rotated,
    rotation_key,
    turned,
)
from fedsim.models.params import Params

Permutation = dict[str, Tensor]


@dataclass(frozen=True)
class Segment:
    """Consecutive entries along an axis of a parameter.

    Parameters
    ----------
    size
        Number of entries.
    order
        Name of the order that they follow, or None if they stay in place.
    repeat
        Number of consecutive entries that move as one unit: after flattening, all positions of a channel.
    """

    size: int
    order: str | None = None
    repeat: int = 1


# One axis of a parameter: its segments, one after the other.
Axis = tuple[Segment, ...]


@dataclass(frozen=True)
class Symmetry:
    """Units that can change places together without changing what the model computes.

    ``blocks`` blocks change places with each other; each contains, in each order, ``width`` units that change places
    within the block. Plain hidden units are blocks of one unit; groups of a group normalisation are blocks with one
    order; heads of attention are blocks with two, of queries and keys and of values.

    Parameters
    ----------
    blocks
        Number of blocks.
    widths
        Units per block, by the name of the order.
    rotations
        Groups of matrices that can rotate the units of each block; these then do not change places within it, except
        that parts which are rotated alike do.
    """

    blocks: int
    widths: Mapping[str, int]
    rotations: tuple[Rotation, ...] = ()

    @property
    def parts(self) -> Iterator[tuple[Rotation, str, int]]:
        """Each group of matrices with each of its orders and the size of a matrix."""
        for rotation in self.rotations:
            for name, copies in rotation.copies.items():
                yield rotation, name, self.widths[name] // copies


@dataclass(frozen=True)
class Spec:
    """The permutation symmetries of an architecture.

    Parameters
    ----------
    symmetries
        Symmetries in the order of a forward pass.
    axes
        One axis per dimension, for each floating-point entry of `fedsim.models.params.state_of`.
    statistics
        Keys of running statistics, which move with their units but do not determine which units belong together.
    norms
        Norms whose scales must be 1 before units are rotated: see `fedsim.alignment.symmetries.norms.absorb_norms`.
    factors
        Factors of heads that can be balanced first: see `fedsim.alignment.symmetries.factors.balance_factors`.
    gates
        Keys of the gates of mixtures of experts, frozen ones too. A softmax does not see what is added to all its
        inputs, so that only the differences of their rows from the mean row determine which units belong together.
    constants
        Keys of buffers that follow no order, such as masks, which may be infinite. They say nothing about units.
    """

    symmetries: tuple[Symmetry, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    statistics: frozenset[str] = field(default_factory=frozenset)
    norms: tuple[Norm, ...] = ()
    factors: tuple[Factors, ...] = ()
    gates: frozenset[str] = field(default_factory=frozenset)
    constants: frozenset[str] = field(default_factory=frozenset)

    @property
    def has_rotations(self) -> bool:
        """Whether units of some symmetry can be rotated."""
        return any(each.rotations for each in self.symmetries)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of each order."""
        return {name: each.blocks * width for each in self.symmetries for name, width in each.widths.items()}

    def uses(self, order: str) -> Iterator[tuple[str, int]]:
        """Yield the key and the dimension of each parameter's axis that follows an order, without statistics."""
        for key, axes in self.axes.items():
            for dimension, axis in enumerate(axes):
                if key not in self.statistics and any(segment.order == order for segment in axis):
                    yield key, dimension


def orders_of(axes: Iterable[Axis]) -> set[str]:
    """Return the orders that some axes follow."""
    return {segment.order for axis in axes for segment in axis if segment.order is not None}


def only(spec: Spec, symmetries: Iterable[Symmetry]) -> Spec:
    """Return a spec with some of its symmetries; all other units stay in place."""
    chosen = tuple(symmetries)
    left = {name for each in chosen for name in each.widths}
    axes = {
        key: tuple(tuple(each if each.order in left else Segment(each.size) for each in axis) for axis in own)
        for key, own in spec.axes.items()
    }
    return replace(spec, symmetries=chosen, axes=axes)


def without_units_of(spec: Spec, keys: Iterable[str]) -> Spec:
    """Return a spec in which the units stay in place that some entries follow."""
    held = {name for key in keys for name in orders_of(spec.axes.get(key, ()))}
    return only(spec, (each for each in spec.symmetries if held.isdisjoint(each.widths)))


def constants_of(model: nn.Module, axes: Mapping[str, tuple[Axis, ...]]) -> frozenset[str]:
    """Return the keys of the buffers that follow no order."""
    buffers = {key for key, _ in model.named_buffers(remove_duplicate=False)}
    return frozenset(key for key, own in axes.items() if key in buffers and not orders_of(own))


def identity(spec: Spec) -> Permutation:
    """Return the permutation that leaves every unit in place."""
    sizes = spec.sizes
    matrices = {
        rotation_key(name): identities(sizes[name], width)
        for symmetry in spec.symmetries
        for _, name, width in symmetry.parts
    }
    return {name: torch.arange(size) for name, size in sizes.items()} | matrices


def random_permutation(spec: Spec, rng: np.random.Generator) -> Permutation:
    """Draw a permutation of an architecture uniformly at random."""
    drawn: Permutation = {}
    for symmetry in spec.symmetries:
        blocks = rng.permutation(symmetry.blocks)
        if symmetry.rotations:
            drawn |= _random_rotation(symmetry, blocks, rng)
            continue
        for name, width in symmetry.widths.items():
            within = [rng.permutation(width) for _ in blocks]
            drawn[name] = torch.from_numpy(np.concatenate([b * width + w for b, w in zip(blocks, within, strict=True)]))
    return drawn


def _random_rotation(symmetry: Symmetry, blocks: NDArray[np.int64], rng: np.random.Generator) -> Permutation:
    drawn, places = dict[str, Tensor](), dict[int, NDArray[np.int64]]()
    for rotation in symmetry.rotations:
        width = next(width for each, _, width in symmetry.parts if each is rotation)
        matrices = random_rotations(rotation.kind, symmetry.blocks, width, rng)
        for name, copies in rotation.copies.items():
            if copies not in places:
                places[copies] = np.stack([rng.permutation(copies) for _ in blocks])
            parts = (blocks[:, None] * copies + places[copies]).ravel()
            drawn[name] = torch.from_numpy((parts[:, None] * width + np.arange(width)).ravel())
            drawn[rotation_key(name)] = matrices.repeat_interleave(copies, 0)
    return drawn


def invert(permutation: Permutation) -> Permutation:
    """Return the permutation that undoes another."""
    inverse = {name: order.argsort() for name, order in permutation.items() if not is_rotation(name)}
    for name, back in list(inverse.items()):
        if (key := rotation_key(name)) in permutation:
            inverse[key] = conjugated(permutation[key].mT, back)
    return inverse


def compose(first: Permutation, then: Permutation) -> Permutation:
    """Return the permutation that applies one after the other."""
    both = {name: order[then[name]] for name, order in first.items() if not is_rotation(name)}
    for name in list(both):
        if (key := rotation_key(name)) in first:
            both[key] = then[key] @ conjugated(first[key], then[name])
    return both


def axes_of(key: str, value: Tensor, spec: Spec) -> tuple[Axis, ...]:
    """Return the axes of an entry; integer ones have none.

    Raises
    ------
    ValueError
        If ``spec`` does not have the entry.
    """
    if key not in spec.axes and value.is_floating_point():
        raise ValueError(
            f"the spec has no entry {key!r}; pass those of fedsim.models.params.state_of, or of fit(model, state_dict, "
            "'a') there, which leaves out frozen tensors and further names of tied ones"
        )
    return spec.axes.get(key, ())


def permute(params: Params, spec: Spec, permutation: Permutation) -> Params:
    """Return a model, or a part of one, with permuted units; entries that do not move are not copied.

    Parameters
    ----------
    params
        Entries of `fedsim.models.params.state_of`; integer ones do not change.
    permutation
        Permutation to apply; units of orders that it does not contain stay in place.

    Raises
    ------
    ValueError
        If ``spec`` does not have an entry, an order has another number of units than in ``spec``, or units are rotated
        whose norms have a scale.
    """
    if any(is_rotation(key) for key in permutation):
        check_absorbed(params, spec.norms)
    return {key: permute_entry(value, axes_of(key, value, spec), permutation) for key, value in params.items()}


def permute_entry(value: Tensor, axes: tuple[Axis, ...], permutation: Permutation, leave: int | None = None) -> Tensor:
    """Return one parameter with permuted units, along all axes except the dimension ``leave``."""
    for dimension, axis in enumerate(axes):
        if dimension == leave:
            continue
        if any(segment.order in permutation for segment in axis):
            value = value.index_select(dimension, positions(axis, permutation).to(value.device))
        parts = [(segment.size, _matrices(segment, permutation)) for segment in axis]
        if any(matrices is not None for _, matrices in parts):
            value = rotated(value, dimension, parts)
    return value


def _matrices(segment: Segment, permutation: Permutation) -> Tensor | None:
    """Return the matrices that rotate the units of a segment, unless there are none or they rotate nothing."""
    key = rotation_key(segment.order or "")
    return None if key not in permutation or is_identity(key, permutation[key]) else permutation[key]


def positions(axis: Axis, permutation: Permutation) -> Tensor:
    """Return the source of each entry along an axis, shape [entries], int64."""
    parts, start = [], 0
    for segment in axis:
        if segment.order in permutation:
            units = permutation[segment.order].cpu()
            if len(units) * segment.repeat != segment.size:
                raise ValueError(
                    f"the order {segment.order!r} has {len(units)} units and must have "
                    f"{segment.size // segment.repeat}; take a permutation of the same architecture"
                )
            inside = (units[:, None] * segment.repeat + torch.arange(segment.repeat)).flatten()
        else:
            inside = torch.arange(segment.size)
        parts.append(start + inside)
        start += segment.size
    return torch.cat(parts)


def moved(permutation: Permutation) -> dict[str, float]:
    """Return the share of units that are not in place, by order, and how far matrices are from rotating nothing."""
    return {name: turned(name, value) for name, value in permutation.items()}
