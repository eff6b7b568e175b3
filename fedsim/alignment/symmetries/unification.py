"""Unification of orders: which entries along the axes of a model's tensors move together.

Making two axes equal never fails: what `fedsim.alignment.symmetries.permutations.Symmetry` cannot express stays in
place, or moves less freely than it could. All functions here change the symbols of their axes.
"""

from fedsim.alignment.symmetries.symbols import (
    NEVER,
    Piece,
    Pieces,
    Symbol,
    UnknownError,
    fixed,
    fresh,
    length,
    resolve,
    root,
)


def fix_(axis: Pieces) -> None:
    """Leave all entries of an axis in place."""
    while symbols := [piece.symbol for piece in resolve(axis) if piece.symbol is not None]:
        _fix_symbol_(symbols[0])


def _fix_symbol_(symbol: Symbol) -> None:
    if symbol.blocks is not None:
        # Otherwise blocks that change places elsewhere would move these units too.
        return _fix_symbol_(root(symbol.blocks))
    symbol.meaning = fixed(symbol.units)
    for member in symbol.members:
        width = member.units // symbol.units
        _become_(member, [piece for i in range(symbol.units) for piece in fresh(width, member, i * width)])
    return None


def _become_(symbol: Symbol, meaning: Pieces) -> None:
    symbol.meaning, symbol.blocks, symbol.members = meaning, None, []


def cut_(axis: Pieces, at: int) -> tuple[list[Piece], list[Piece]]:
    """Cut an axis in two; a symbol on both sides becomes two symbols."""
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
        # A unit that is cut through becomes a piece of its own, so that it stays in place.
        before = inside // piece.repeat
        _split_(piece.symbol, before or 1)


def _split_(symbol: Symbol, at: int) -> None:
    """Let the units before and after a position change places only among themselves."""
    if symbol.blocks is not None:
        blocks, width = root(symbol.blocks), symbol.width
        if at % width:
            return _fix_symbol_(blocks)
        return _split_(blocks, at // width)
    members = symbol.members
    (left,), (right,) = fresh(at, symbol), fresh(symbol.units - at, symbol, at)
    _become_(symbol, [left, right])
    for member in members:
        width = member.units // (left.units + right.units)
        parts = fresh(left.units * width, member), fresh(right.units * width, member, left.units * width)
        _become_(member, [*parts[0], *parts[1]])
        block_(parts[0], [left])
        block_(parts[1], [right])
    return None


def unify_(first: Pieces, second: Pieces) -> None:
    """Let the entries of two axes of the same length move in the same way.

    Raises
    ------
    UnknownError
        If their lengths differ.
    """
    if length(first) != length(second):
        raise UnknownError
    pending = [(first, second)]
    while pending:
        a, b = map(resolve, pending.pop())
        if len(a) == len(b) == 1:
            _join_(a[0], b[0])
        elif a:
            at = min(a[0].length, b[0].length)
            (head, rest), (other, others) = cut_(a, at), cut_(b, at)
            pending += [(rest, others), (head, other)]


def _join_(a: Piece, b: Piece) -> None:
    if a.symbol is None or b.symbol is None:
        fix_([a, b])
    elif a.repeat == b.repeat:
        _merge_(a.symbol, b.symbol)
    elif max(a.repeat, b.repeat) % min(a.repeat, b.repeat) == 0:
        fine, coarse = sorted((a, b), key=lambda piece: piece.repeat)
        assert fine.symbol is not None
        _coarsen_(fine.symbol, coarse._replace(repeat=coarse.repeat // fine.repeat))
    else:
        fix_([a, b])


def _merge_(a: Symbol, b: Symbol) -> None:
    """Merge two symbols."""
    if a is b:
        return None
    if (a.blocks and b.members) or (b.blocks and a.members):
        _fix_symbol_(root(a.blocks or b.blocks))  # type: ignore[arg-type]
        return unify_([Piece(a.units, a)], [Piece(b.units, b)])
    if a.blocks and b.blocks:
        mine, other = root(a.blocks), root(b.blocks)
        if mine.units != other.units:
            _fix_symbol_(min(mine, other, key=lambda blocks: blocks.units))
            return unify_([Piece(a.units, a)], [Piece(b.units, b)])
        _merge_(mine, other)
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
    _become_(b, [Piece(a.units, a)])
    return None


def _coarsen_(symbol: Symbol, coarse: Piece) -> None:
    """Let the units of a symbol move several at a time, like a coarser piece."""
    blocks, members = symbol.blocks, symbol.members
    if blocks is not None:
        root(blocks).members.remove(symbol)
    if coarse.symbol is not None:
        coarse.symbol.source = min(filter(None, (coarse.symbol.source, symbol.source)), default=None)
    _become_(symbol, [coarse])
    for member in members:
        _become_(member, [coarse._replace(repeat=coarse.repeat * (member.units // symbol.units))])
    if blocks is not None:
        block_([coarse], [Piece(root(blocks).units, root(blocks))])


def block_(axis: Pieces, blocks: Pieces) -> None:
    """Let the entries of an axis move within blocks, which change places like the entries of another axis."""
    width = length(axis) // length(blocks)
    rest: Pieces = axis
    for piece in resolve(blocks):
        inside, rest = cut_(rest, piece.length * width)
        if (known := resolve([piece])) == [piece]:
            _block_piece_(inside, piece, width)
        else:  # the axis had units of the blocks themselves, which the cut has changed
            block_(inside, known)


def _block_piece_(axis: Pieces, blocks: Piece, width: int) -> None:
    if blocks.symbol is None:
        for _ in range(blocks.length - 1):
            axis = cut_(axis, width)[1]
        return None
    if blocks.repeat > 1:
        return unify_(axis, [blocks._replace(repeat=blocks.repeat * width)])
    pieces, parent = resolve(axis), root(blocks.symbol)
    symbol = pieces[0].symbol if len(pieces) == 1 else None
    if symbol is None:
        pass
    elif symbol.units == parent.units:
        return _merge_(symbol, parent)
    elif parent.units % symbol.units == 0 and symbol is not parent:
        return _coarsen_(parent, Piece(symbol.units, symbol, parent.units // symbol.units))
    elif symbol.units % parent.units == 0 and not symbol.members and not parent.blocks:
        if symbol.blocks is None:
            symbol.blocks = parent
            parent.members.append(symbol)
            return None
        if root(symbol.blocks).units == parent.units:
            return _merge_(root(symbol.blocks), parent)
    _fix_symbol_(parent)
    return block_(axis, [blocks])  # which may consist of other symbols now
