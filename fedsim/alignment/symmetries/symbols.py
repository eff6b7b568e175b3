"""Axes of a model's tensors as consecutive pieces, whose entries move in orders that are not known yet: symbols."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# A source later than that of any parameter.
NEVER = (sys.maxsize, "", 0)


class UnknownError(Exception):
    """An operation whose effect on the units is not known."""


@dataclass(eq=False)
class Symbol:
    """An order of units that is not known yet, or that has turned out to consist of others.

    Parameters
    ----------
    units
        Number of units.
    meaning
        Pieces that it stands for, once they are known.
    blocks
        Symbol with one unit per equally wide block of this symbol's units; the blocks change places like its units.
    members
        Symbols whose blocks it is.
    source
        Rank and name of the parameter that wrote it first, and the number of that parameter's units before it.
    role
        Name that distinguishes it from other orders of the same parameter.
    """

    units: int
    meaning: "Pieces | None" = None
    blocks: "Symbol | None" = None
    members: list["Symbol"] = field(default_factory=list)
    source: tuple[int, str, int] | None = None
    role: str = ""

    @property
    def width(self) -> int:
        """Units per block."""
        return 1 if self.blocks is None else self.units // root(self.blocks).units


class Piece(NamedTuple):
    """Consecutive entries of an axis, ``repeat`` for each unit of a symbol; without a symbol they stay in place."""

    units: int
    symbol: Symbol | None = None
    repeat: int = 1

    @property
    def length(self) -> int:
        """Number of entries."""
        return self.units * self.repeat


Pieces = Sequence[Piece]


def fixed(size: int) -> Pieces:
    """Return an axis whose entries stay in place."""
    return [Piece(size)]


def fresh(units: int, like: Symbol | None = None, offset: int = 0) -> Pieces:
    """Return an axis of units that nothing is known about, or of part of a symbol's units, starting at ``offset``."""
    symbol = Symbol(units)
    if like is not None:
        symbol.role = like.role
        symbol.source = None if like.source is None else (*like.source[:2], like.source[2] + offset)
    return [Piece(units, symbol)]


def length(axis: Pieces) -> int:
    """Return the number of entries along an axis."""
    return sum(piece.length for piece in axis)


def resolve(axis: Pieces) -> list[Piece]:
    """Return the pieces of an axis by what is known now."""
    pieces: list[Piece] = []
    for piece in axis:
        symbol = piece.symbol
        if symbol is not None and symbol.meaning is not None:
            symbol.meaning = resolve(symbol.meaning)
            found = [each._replace(repeat=each.repeat * piece.repeat) for each in symbol.meaning]
        else:
            found = [piece]
        for each in found:
            if not each.length:  # as of padding on one side
                continue
            # A single unit cannot move.
            known = Piece(each.length) if each.symbol is None or each.units == 1 else each
            if known.symbol is None and pieces and pieces[-1].symbol is None:
                known = Piece(pieces.pop().units + known.units)
            pieces.append(known)
    return pieces


def root(symbol: Symbol) -> Symbol:
    """Return the symbol that a merged symbol stands for."""
    while symbol.meaning is not None:
        (piece,) = symbol.meaning
        assert piece.symbol is not None
        symbol = piece.symbol
    return symbol


def write_(axis: Pieces, rank: int, name: str, role: str = "") -> None:
    """Note that a parameter writes an axis, as the ``rank``-th in a forward pass; the first one names its orders."""
    offset = 0
    for piece in resolve(axis):
        if piece.symbol is not None:
            piece.symbol.source = piece.symbol.source or (rank, name, offset)
            piece.symbol.role = piece.symbol.role or role
        offset += piece.length


def name_role_(axis: Pieces, role: str) -> None:
    """Name the role that distinguishes the orders of an axis from others of the same parameter."""
    for piece in resolve(axis):
        if piece.symbol is not None:
            piece.symbol.role = piece.symbol.role or role
