"""Which entries along the axes of a model's tensors move together: unification of axes whose orders are not known yet.

An axis is a list of pieces, one after the other. Making two axes equal never fails: what cannot be expressed by
`fedsim.alignment.symmetries.permutations.Symmetry` stays where it is, or moves less freely than it could.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

_ranks = count()
# Later than any parameter.
NEVER = (sys.maxsize, "", 0)


class UnknownError(Exception):
    """An operation of which it is not known where the units are afterwards."""


@dataclass(eq=False)
class Symbol:
    """An order of units that is not known yet, or that has turned out to consist of others.

    Parameters
    ----------
    units
        How many there are.
    meaning
        What it stands for, once that is known.
    blocks
        Its units are in as many equally wide blocks as this symbol has units; those change places like these.
    members
        Symbols whose blocks it is.
    source
        When and by which parameter it was written first, and which of that parameter's units come before.
    role
        What tells it from other orders of the same parameter.
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
    """Consecutive entries of an axis: of each unit of a symbol, ``repeat``; without symbol they stay in place."""

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
    """Return an axis of units that nothing is known about, or a part of another symbol's, beginning at ``offset``."""
    symbol = Symbol(units)
    if like is not None:
        symbol.role = like.role
        symbol.source = None if like.source is None else (*like.source[:2], like.source[2] + offset)
    return [Piece(units, symbol)]


def length(axis: Pieces) -> int:
    """Return the number of entries along an axis."""
    return sum(piece.length for piece in axis)


def resolve(axis: Pieces) -> list[Piece]:
    """Return the pieces of which an axis consists by what is known now."""
    pieces: list[Piece] = []
    for piece in axis:
        symbol = piece.symbol
        if symbol is not None and symbol.meaning is not None:
            symbol.meaning = resolve(symbol.meaning)
            found = [each._replace(repeat=each.repeat * piece.repeat) for each in symbol.meaning]
        else:
            found = [piece]
        for each in found:
            # A single unit has no other place.
            known = Piece(each.length) if each.symbol is None or each.units == 1 else each
            if known.symbol is None and pieces and pieces[-1].symbol is None:
                known = Piece(pieces.pop().units + known.units)
            pieces.append(known)
    return pieces


def root(symbol: Symbol) -> Symbol:
    """Return the symbol that one which was merged with others stands for."""
    while symbol.meaning is not None:
        (piece,) = symbol.meaning
        assert piece.symbol is not None
        symbol = piece.symbol
    return symbol


def write(axis: Pieces, name: str, role: str = "") -> None:
    """Note which parameter writes an axis: its orders are called by the first one."""
    rank, offset = next(_ranks), 0
    for piece in resolve(axis):
        if piece.symbol is not None:
            piece.symbol.source = piece.symbol.source or (rank, name, offset)
            piece.symbol.role = piece.symbol.role or role
        offset += piece.length


def name_role(axis: Pieces, role: str) -> None:
    """Note what tells the orders of an axis from others of the same parameter."""
    for piece in resolve(axis):
        if piece.symbol is not None:
            piece.symbol.role = piece.symbol.role or role


def fix(axis: Pieces) -> None:
    """Leave all entries of an axis in place."""
    while symbols := [piece.symbol for piece in resolve(axis) if piece.symbol is not None]:
        _fix_symbol(symbols[0])


def _fix_symbol(symbol: Symbol) -> None:
    if symbol.blocks is not None:
        # Blocks that change places elsewhere would move these units too.
        return _fix_symbol(root(symbol.blocks))
    symbol.meaning = fixed(symbol.units)
    for member in symbol.members:
        width = member.units // symbol.units
        _become(member, [piece for i in range(symbol.units) for piece in fresh(width, member, i * width)])
    return None


def _become(symbol: Symbol, meaning: Pieces) -> None:
    symbol.meaning, symbol.blocks, symbol.members = meaning, None, []


def cut(axis: Pieces, at: int) -> tuple[list[Piece], list[Piece]]:
    """Return an axis as two; a symbol on both sides becomes two."""
    while True:
        pieces, start, i = resolve(axis), 0, 0
        while i < len(pieces) and start + pieces[i].length <= at:
            start += pieces[i].length
            i += 1
        if start == at:
            return pieces[:i], pieces[i:]
        inside, piece = at - start, pieces[i]
        if piece.symbol is None:
            left, right = Piece(inside), Piece(piece.units - inside)
            return [*pieces[:i], left], [right, *pieces[i + 1 :]]
        # A unit that is cut through is left alone, so that it stays in place.
        before = inside // piece.repeat
        _split(piece.symbol, before or 1)


def _split(symbol: Symbol, at: int) -> None:
    """Let the units before and after a place change places only among themselves."""
    if symbol.blocks is not None:
        blocks, width = root(symbol.blocks), symbol.width
        if at % width:
            return _fix_symbol(blocks)
        return _split(blocks, at // width)
    members = symbol.members
    (left,), (right,) = fresh(at, symbol), fresh(symbol.units - at, symbol, at)
    _become(symbol, [left, right])
    for member in members:
        width = member.units // (left.units + right.units)
        parts = fresh(left.units * width, member), fresh(right.units * width, member, left.units * width)
        _become(member, [*parts[0], *parts[1]])
        block(parts[0], [left])
        block(parts[1], [right])
    return None


def unify(first: Pieces, second: Pieces) -> None:
    """Let the entries of two axes of the same length move in the same way.

    Raises
    ------
    UnknownError
        If they are not of the same length.
    """
    if length(first) != length(second):
        raise UnknownError
    pending = [(first, second)]
    while pending:
        a, b = map(resolve, pending.pop())
        if len(a) == len(b) == 1:
            _join(a[0], b[0])
        elif a:
            at = min(a[0].length, b[0].length)
            (head, rest), (other, others) = cut(a, at), cut(b, at)
            pending += [(rest, others), (head, other)]


def _join(a: Piece, b: Piece) -> None:
    if a.symbol is None or b.symbol is None:
        fix([a, b])
    elif a.repeat == b.repeat:
        _merge(a.symbol, b.symbol)
    elif max(a.repeat, b.repeat) % min(a.repeat, b.repeat) == 0:
        fine, coarse = sorted((a, b), key=lambda piece: piece.repeat)
        assert fine.symbol is not None
        _coarsen(fine.symbol, coarse._replace(repeat=coarse.repeat // fine.repeat))
    else:
        fix([a, b])


def _merge(a: Symbol, b: Symbol) -> None:
    """Make two symbols one."""
    if a is b:
        return None
    if (a.blocks and b.members) or (b.blocks and a.members):
        _fix_symbol(root(a.blocks or b.blocks))  # type: ignore[arg-type]
        return unify([Piece(a.units, a)], [Piece(b.units, b)])
    if a.blocks and b.blocks:
        mine, other = root(a.blocks), root(b.blocks)
        if mine.units != other.units:
            _fix_symbol(min(mine, other, key=lambda blocks: blocks.units))
            return unify([Piece(a.units, a)], [Piece(b.units, b)])
        _merge(mine, other)
    if (b.source or NEVER) < (a.source or NEVER):
        a, b = b, a
    a.blocks = a.blocks or b.blocks
    if a.blocks and a not in root(a.blocks).members:
        root(a.blocks).members.append(a)
    a.members += b.members
    for member in b.members:
        member.blocks = a
    a.source, a.role = a.source or b.source, a.role or b.role
    if b.blocks:
        root(b.blocks).members.remove(b)
    _become(b, [Piece(a.units, a)])
    return None


def _coarsen(symbol: Symbol, coarse: Piece) -> None:
    """Let the units of a symbol move as several at a time."""
    blocks, members = symbol.blocks, symbol.members
    if blocks is not None:
        root(blocks).members.remove(symbol)
    if coarse.symbol is not None:
        coarse.symbol.source = min(coarse.symbol.source or NEVER, symbol.source or NEVER)
    _become(symbol, [coarse])
    for member in members:
        _become(member, [coarse._replace(repeat=coarse.repeat * (member.units // symbol.units))])
    if blocks is not None:
        block([coarse], [Piece(root(blocks).units, root(blocks))])


def block(axis: Pieces, blocks: Pieces) -> None:
    """Let the entries of an axis move within blocks, which change places like the entries of a second axis."""
    width = length(axis) // length(blocks)
    rest: Pieces = axis
    for piece in resolve(blocks):
        inside, rest = cut(rest, piece.length * width)
        _block_piece(inside, piece, width)


def _block_piece(axis: Pieces, blocks: Piece, width: int) -> None:
    if blocks.symbol is None:
        for _ in range(blocks.length - 1):
            axis = cut(axis, width)[1]
        return None
    if blocks.repeat > 1:
        return unify(axis, [blocks._replace(repeat=blocks.repeat * width)])
    pieces, parent = resolve(axis), root(blocks.symbol)
    symbol = pieces[0].symbol if len(pieces) == 1 else None
    if symbol is None:
        pass
    elif symbol.units == parent.units:
        return _merge(symbol, parent)
    elif parent.units % symbol.units == 0 and symbol is not parent:
        return _coarsen(parent, Piece(symbol.units, symbol, parent.units // symbol.units))
    elif symbol.units % parent.units == 0 and not symbol.members and not parent.blocks:
        if symbol.blocks is None:
            symbol.blocks = parent
            parent.members.append(symbol)
            return None
        if root(symbol.blocks).units == parent.units:
            return _merge(root(symbol.blocks), parent)
    _fix_symbol(parent)
    return _block_piece(axis, Piece(blocks.units), width)
