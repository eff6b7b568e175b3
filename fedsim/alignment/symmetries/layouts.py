"""Layouts of a model's units in the tensors that it computes, and in reshaped ones.

Functions with an underscore state what moves together, and so change the symbols of their axes. A dimension that
depends on others gets its own axis (`plain`) at the price that its units move in the same way everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from fedsim.alignment.symmetries.symbols import Pieces, fixed, fresh, length, resolve
from fedsim.alignment.symmetries.unification import block_, cut_, fix_, unify_


@dataclass(eq=False)
class Split:
    """An axis that has become several dimensions: the heads of attention and the units in each.

    The place of a unit in its head depends on the head, so such dimensions have no separate axes.
    """

    axis: Pieces
    sizes: tuple[int, ...]
    outer: Pieces | None = None

    def heads_(self) -> Pieces:
        """Return the axis of the first dimension: its entries change places, with all that lies within them."""
        if self.outer is None:
            self.outer = fresh(self.sizes[0])
            block_(self.axis, self.outer)
        return self.outer

    def tied_(self) -> list[Pieces]:
        """Return an axis for each dimension: entries of the last move in the same way, whatever the others are."""
        inner = fresh(self.sizes[-1])
        unify_(self.axis, list(inner) * prod(self.sizes[:-1]))
        return [*map(fixed, self.sizes[:-1]), inner]


class Part(NamedTuple):
    """One of the dimensions of a split axis."""

    split: Split
    place: int


Dimension = Pieces | Part


class Layout(NamedTuple):
    """The dimensions of a tensor."""

    dimensions: tuple[Dimension, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of entries along each dimension."""
        return tuple(map(size_of, self.dimensions))


def still(shape: Sequence[int]) -> Layout:
    """Return the layout of a tensor whose entries stay in place."""
    return Layout(tuple(map(fixed, shape)))


def size_of(dimension: Dimension) -> int:
    """Return the number of entries along a dimension."""
    return dimension.split.sizes[dimension.place] if isinstance(dimension, Part) else length(dimension)


def plain(dimension: Dimension) -> Pieces:
    """Return a separate axis for a dimension, even if it depends on others."""
    if not isinstance(dimension, Part):
        return dimension
    found = independent(dimension)
    return dimension.split.tied_()[dimension.place] if found is None else found


def independent(dimension: Dimension) -> Pieces | None:
    """Return the axis of a dimension by what is known now, or None if it depends on others."""
    if not isinstance(dimension, Part):
        return dimension
    known = split(dimension.split.axis, dimension.split.sizes)[dimension.place]
    return None if isinstance(known, Part) else known


def stay_(dimension: Dimension) -> None:
    """Leave the entries along a dimension in place."""
    if isinstance(dimension, Part) and dimension.place > 0:
        inner = prod(dimension.split.sizes[1:])
        unify_(dimension.split.axis, [piece._replace(repeat=inner) for piece in dimension.split.heads_()])
    fix_(plain(dimension))


def fix_all_(layout: Layout) -> None:
    """Leave all entries of a tensor in place."""
    for dimension in layout.dimensions:
        fix_(dimension.split.axis if isinstance(dimension, Part) else dimension)


def join_(first: Dimension, second: Dimension) -> Dimension:
    """Let two dimensions of the same size move in the same way, and return the joint dimension."""
    if isinstance(second, Part) and not isinstance(first, Part):
        first, second = second, first
    if isinstance(first, Part) and isinstance(second, Part) and _agree(first, second):
        unify_(first.split.axis, second.split.axis)
        return first
    unify_(alone(first), alone(second))
    return first


def _agree(first: Part, second: Part) -> bool:
    return first.place == second.place and first.split.sizes == second.split.sizes


def alone(dimension: Dimension) -> Pieces:
    """Return a separate axis for a dimension of a tensor without the other dimensions of its split axis.

    Whole heads can then change places, with all that lies within them.
    """
    return dimension.split.heads_() if isinstance(dimension, Part) and dimension.place == 0 else plain(dimension)


def broadcast_(layouts: Sequence[Layout]) -> Layout:
    """Let the dimensions of tensors that are combined entry by entry move in the same way."""
    n = max(len(each.dimensions) for each in layouts)
    found: list[Dimension] = [fixed(1)] * n
    for each in layouts:
        for i, dimension in enumerate(each.dimensions, n - len(each.dimensions)):
            if size_of(found[i]) == 1:
                found[i] = dimension
            elif size_of(dimension) != 1:
                found[i] = join_(found[i], dimension)
    return Layout(tuple(found))


def complete(layout: Layout) -> Layout:
    """Give separate axes to dimensions of split axes whose other dimensions are missing."""
    dimensions = list(layout.dimensions)
    for i, dimension in enumerate(layout.dimensions):
        if isinstance(dimension, Part):
            split = dimension.split
            present = [each.place for each in layout.dimensions if isinstance(each, Part) and each.split is split]
            if present == [0]:
                dimensions[i] = split.heads_()
            elif sorted(present) != list(range(len(split.sizes))):
                dimensions[i] = plain(dimension)
    return Layout(tuple(dimensions))


def split(axis: Pieces, sizes: Sequence[int]) -> list[Dimension]:
    """Return the dimensions that an axis becomes, the outermost first."""
    pieces, sizes = resolve(axis), list(sizes)
    if all(piece.symbol is None for piece in pieces):
        return [fixed(size) for size in sizes]
    if len(sizes) == 1:
        return [pieces]
    if all(piece.symbol is not None and piece.repeat % sizes[-1] == 0 for piece in pieces):
        units = [piece._replace(repeat=piece.repeat // sizes[-1]) for piece in pieces]
        return [*split(units, sizes[:-1]), fixed(sizes[-1])]
    copies, rest = sizes[0], len(pieces) // sizes[0]
    if len(pieces) % copies == 0 and pieces == pieces[:rest] * copies:
        return [fixed(copies), *split(pieces[:rest], sizes[1:])]
    whole = Split(pieces, tuple(sizes))
    return [Part(whole, i) for i in range(len(sizes))]


def merge(dimensions: Sequence[Dimension]) -> Pieces:
    """Return the axis that dimensions become, the outermost first."""
    axis: Pieces = fixed(1)
    rest = list(dimensions)
    while rest:
        last = rest.pop()
        if isinstance(last, Part):
            n = len(last.split.sizes)
            run = [*rest[len(rest) - n + 1 :], last]
            if run == [Part(last.split, i) for i in range(n)]:
                del rest[len(rest) - n + 1 :]
                last = last.split.axis
        axis = _product(plain(last), axis)
    return axis


def _product(outer: Pieces, inner: Pieces) -> Pieces:
    if any(piece.symbol is not None for piece in resolve(inner)):
        fix_(outer)
        return resolve(inner) * length(outer)
    return [piece._replace(repeat=piece.repeat * length(inner)) for piece in resolve(outer)]


def reshape(layout: Layout, shape: Sequence[int]) -> Layout:
    """Return the layout of a tensor after reshaping."""
    rest = [dimension for dimension in layout.dimensions if size_of(dimension) != 1]
    found: list[Dimension] = [fixed(1)] * len(shape)
    places = [i for i, size in enumerate(shape) if size != 1]
    while places:
        # The smallest number of dimensions that hold the same entries before and after.
        before, after = [rest.pop(0)], [places.pop(0)]
        while (n := prod(map(size_of, before))) != (m := prod(shape[i] for i in after)):
            if n < m:
                before.append(rest.pop(0))
            else:
                after.append(places.pop(0))
        parts = before if len(before) == len(after) == 1 else split(merge(before), [shape[i] for i in after])
        for i, part in zip(after, parts, strict=True):
            found[i] = part
    return Layout(tuple(found))


def narrow(layout: Layout, dimension: int, start: int, stop: int) -> Layout:
    """Return the layout of a slice of a tensor along a dimension."""
    dimensions, chosen = list(layout.dimensions), layout.dimensions[dimension]
    if stop - start == size_of(chosen):
        return layout
    if not isinstance(chosen, Part):
        dimensions[dimension] = cut_(cut_(chosen, stop)[0], start)[1]
    elif chosen.place == 0 and chosen.split.outer is None:
        width = prod(chosen.split.sizes[1:])
        axis = cut_(cut_(chosen.split.axis, stop * width)[0], start * width)[1]
        sizes = (stop - start, *chosen.split.sizes[1:])
        parts = split(axis, [size for size in sizes if size != 1])
        if sizes[0] == 1:
            parts.insert(0, fixed(1))
        for i, each in enumerate(layout.dimensions):
            if isinstance(each, Part) and each.split is chosen.split:
                dimensions[i] = parts[each.place]
    else:
        dimensions[dimension] = cut_(cut_(plain(chosen), stop)[0], start)[1]
    return Layout(tuple(dimensions))
