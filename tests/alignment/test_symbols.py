"""Whatever is asked of axes in whatever order, permutations of what they resolve to do it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.alignment.symmetries.permutations import Permutation, Segment, Spec, Symmetry, positions, random_permutation
from fedsim.alignment.symmetries.symbols import (
    Pieces,
    Symbol,
    UnknownError,
    fixed,
    fresh,
    length,
    resolve,
    root,
    write_,
)
from fedsim.alignment.symmetries.unification import block_, cut_, fix_, unify_
from fedsim.seeds import rng

LENGTH = 24


def draw_axis(generator: np.random.Generator, known: list[Pieces]) -> Pieces:
    """Return an axis of pieces of known and new orders, each entry once or several times in a row, and fixed ones."""
    axis: list = []
    while length(axis) < LENGTH:
        units, repeat = int(generator.choice([1, 2, 3, 4, 6, 8, 12])), int(generator.choice([1, 1, 1, 2, 3]))
        kind = generator.integers(10)
        if kind == 0:
            pieces = fixed(units)
        elif kind < 5 and known:
            pieces = known[int(generator.integers(len(known)))]
        else:
            known.append(pieces := fresh(units))
        axis += [piece._replace(repeat=piece.repeat * repeat) for piece in pieces]
    return cut_(axis, LENGTH)[0]


def drawn(axes: list[Pieces], generator: np.random.Generator) -> tuple[Permutation, dict[Symbol, str]]:
    """Draw a permutation of all orders of some axes."""
    symbols = dict.fromkeys(piece.symbol for axis in axes for piece in resolve(axis) if piece.symbol is not None)
    names = {symbol: str(i) for i, symbol in enumerate(symbols)}
    together: dict[Symbol, dict[str, int]] = {}
    for symbol, name in names.items():
        leader = symbol if symbol.blocks is None else root(symbol.blocks)
        together.setdefault(leader, {})[name] = symbol.width
    spec = Spec(tuple(Symmetry(leader.units, widths) for leader, widths in together.items()), {})
    return random_permutation(spec, generator), names


def origin(axis: Pieces, permutation: Permutation, names: dict[Symbol, str]) -> Tensor:
    """Return from where each entry along an axis comes."""
    parts = [
        Segment(each.length) if each.symbol is None else Segment(each.length, names[each.symbol], each.repeat)
        for each in resolve(axis)
    ]
    return positions(tuple(parts), permutation)


@pytest.mark.parametrize("seed", range(60))
def test_axes_move_as_they_have_been_asked_to(seed: int) -> None:
    generator, known = rng(seed), list[Pieces]()
    axes = [draw_axis(generator, known) for _ in range(4)]
    blocks: list[tuple[Pieces, Pieces]] = []
    pairs: list[tuple[int, int]] = []
    for _ in range(4):
        first, second = (int(i) for i in generator.integers(len(axes), size=2))
        if generator.random() < 0.5:
            # What moves in an axis may be the blocks of another.
            outers = [each for each in known if length(each) in (2, 3, 4, 6, 12)] if generator.random() < 0.5 else []
            new = fresh(int(generator.choice([2, 3, 4, 6, 12])))
            blocks.append((axes[first], outers[int(generator.integers(len(outers)))] if outers else new))
            block_(*blocks[-1])
        else:
            pairs.append((first, second))
            unify_(axes[first], axes[second])
    still = cut_(axes[0], 5)[0]
    if generator.random() < 0.3:
        fix_(still)
    for _ in range(3):
        permutation, names = drawn([*axes, *(each for _, each in blocks)], generator)
        found = [origin(axis, permutation, names) for axis in axes]
        for first, second in pairs:
            assert torch.equal(found[first], found[second])
        for axis, outer in blocks:
            width = LENGTH // length(outer)
            inside = origin(axis, permutation, names).view(-1, width) // width
            assert torch.equal(inside, origin(outer, permutation, names)[:, None].expand_as(inside))
    assert all(length(axis) == LENGTH for axis in axes)


def test_what_is_fixed_stays() -> None:
    axis, other = fresh(6), [*fresh(2), *fresh(4)]
    unify_(axis, other)
    fix_(cut_(axis, 3)[0])
    permutation, names = drawn([axis], rng(0))
    assert list(names.values()) == ["0"]
    assert origin(axis, permutation, names)[:3].tolist() == [0, 1, 2]
    assert [each.units for each in resolve(other)] == [3, 3]


def test_axes_of_different_lengths_are_refused() -> None:
    with pytest.raises(UnknownError):
        unify_(fresh(3), fresh(4))


def test_an_order_belongs_to_the_parameter_that_wrote_it_first() -> None:
    first, second, third = fresh(3), fresh(3), fresh(6)
    write_(first, 0, "first")
    write_(third, 1, "third")
    unify_([*second, *first], third)
    sources = [piece.symbol.source for piece in resolve(third) if piece.symbol and piece.symbol.source]
    assert [(name, before) for _, name, before in sources] == [("third", 0), ("first", 0)]
