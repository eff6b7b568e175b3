"""Colours, dashes and markers of strategies, and the colour scales of heat maps, for figures in any library."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The nearest two differ as much as those of Okabe and Ito's palette, for every kind of colour vision; all can be told
# from white and from a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#D47AB3", "#6F6153", "#A57BFB", "#92287D", "#BA2802")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", ">")  # matplotlib's names
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "wedge", "triangle-right")  # Vega's
# In line widths: line, gap, line, gap; the first is solid.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (6, 1.5, 1.5, 1.5, 1.5, 1.5))
# Methods that most comparisons show have the same colour in all of them.
USUAL = ("fedavg", "fedper", "lg-fedavg", "fedbn", "local", "fedrep", "ditto", "fedprox")

# Below 0 averaging helps, above 0 it hurts; the middle is neither.
DIVERGING = ("#2166AC", "#4393C3", "#92C5DE", "#D1E5F0", "#F7F7F7", "#FDDBC7", "#F4A582", "#D6604D", "#B2182B")
# How well models agree, from not at all to wholly. No colour of it means that something helps or hurts.
ALIGNED = ("#F7FCF5", "#D9F0D3", "#A6DBA0", "#5AAE61", "#1B7837", "#00441B")
# Amounts that are neither good nor bad, such as distances, ratios and shares.
AMOUNT = ("#FBFBFD", "#DADAEB", "#BCBDDC", "#9E9AC8", "#756BB1", "#3F007D")
NOT_MEASURED = "#E4E4E4"


@dataclass(frozen=True)
class Look:
    """How the lines and points of a strategy look.

    Parameters
    ----------
    dash
        Lengths of lines and gaps in line widths; empty for a solid line.
    marker, shape
        Name of the same marker in matplotlib, and in Vega.
    """

    colour: str
    dash: tuple[float, ...]
    marker: str
    shape: str


def look(number: int) -> Look:
    """Return the n-th look; after the last colour come the same colours with other dashes and markers."""
    colour, turn = number % len(COLOURS), number // len(COLOURS)
    marker = (colour + turn) % len(MARKERS)
    return Look(COLOURS[colour], DASHES[turn % len(DASHES)], MARKERS[marker], SHAPES[marker])


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the look of each strategy by its label, in the order of the labels; no two are alike.

    A look depends on the label, and not on the order or on what else is drawn: the methods that most comparisons show
    have their own, and the others one that follows from their label, or the next that is free.
    """
    names = list(dict.fromkeys(names))
    taken: dict[int, str] = {}
    for name in sorted(names, key=lambda each: (each.casefold() not in USUAL, each)):
        wanted = USUAL.index(name.casefold()) if name.casefold() in USUAL else zlib.crc32(name.encode())
        taken[_free(wanted % len(COLOURS), taken)] = name
    numbers = {name: number for number, name in taken.items()}
    return {name: look(numbers[name]) for name in names}


def _free(wanted: int, taken: Iterable[int]) -> int:
    """Return the wanted number, or the next of its round of colours; of later rounds if all of those are taken."""
    taken, turn = set(taken), 0
    while True:
        for step in range(len(COLOURS)):
            if (number := turn + (wanted + step) % len(COLOURS)) not in taken:
                return number
        turn += len(COLOURS)


def colour_at(stops: Sequence[str], share: float) -> str:
    """Return the colour of a scale at a share of its length from 0 to 1, with linear steps between its stops."""
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    parts = zip(_channels(stops[low]), _channels(stops[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02X}" for a, b in parts)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
