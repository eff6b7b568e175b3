"""How a table is laid out on a terminal: numbers are always whole, texts are folded, whole columns are left out."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from fedsim.shortening import cut, letters

if TYPE_CHECKING:
    from fedsim.results.report.comparing.tables import Table

GAP = 2  # letters between columns
TEXT_WIDTH = 12  # letters that a text needs if it is folded
MOST_LINES = 4  # of a folded text
NARROWEST = 6
# Where a text is folded: after a space or a sign between names.
PIECE = re.compile(r"[^\s(,;:_./-]*[\s(,;:_./-]*")
GLUED = re.compile(r"^(\S{1,2}) ")


def columns_that_fit(table: "Table", width: int) -> list[int]:
    """Return the columns to show: texts of priority 0, and the others with the lowest priorities, as far as they fit.

    Parameters
    ----------
    width
        Letters in a line. At least one of the others is shown, so that the table may be wider.
    """
    every = range(len(table.headings))
    labels = [column for column in every if not table.numeric[column] and not table.priorities[column]]
    if fits(table, width):
        return list(every)
    left = width - 1 - _room_for_texts(table, labels, width)
    chosen: list[int] = []
    last = None  # the priority of the first column that does not fit: only equal ones may follow
    for column in sorted((column for column in every if column not in labels), key=table.priorities.__getitem__):
        needed = GAP + (least_width(table, column) if table.numeric[column] else _least_label(table, column))
        if not chosen or (needed <= left and last in (None, table.priorities[column])):
            chosen.append(column)
            left -= needed
        elif last is None:
            last = table.priorities[column]
    return sorted(labels + chosen)


def parts_that_fit(table: "Table", width: int) -> Iterator[list[int]]:
    """Yield the columns of each of the tables that a table is printed as: its texts, and as many numbers as fit."""
    every = range(len(table.headings))
    labels = [column for column in every if not table.numeric[column]]
    numbers = [column for column in every if table.numeric[column]]
    if fits(table, width) or not numbers:
        yield list(every)
        return
    room = width - 1 - _room_for_texts(table, labels, width)
    chosen: list[int] = []
    left = room
    for column in numbers:
        needed = least_width(table, column) + GAP
        if chosen and needed > left:
            yield sorted(labels + chosen)
            chosen, left = [], room
        chosen.append(column)
        left -= needed
    yield sorted(labels + chosen)


def widths_of(table: "Table", columns: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns on a line: of numbers what they need, of texts what is left."""
    if 1 + sum(full_width(table, column) + GAP for column in columns) <= width:
        return [full_width(table, column) for column in columns]
    labels = [column for column in columns if not table.numeric[column]]
    numbers = sum(least_width(table, column) + GAP for column in columns if table.numeric[column])
    room = max(width - 1 - numbers - GAP * len(labels), NARROWEST * len(labels))
    given = {column: full_width(table, column) for column in labels}
    while labels and sum(given.values()) > room:
        widest = max(labels, key=given.__getitem__)
        given[widest] -= 1
    return [least_width(table, column) if table.numeric[column] else given[column] for column in columns]


def fits(table: "Table", width: int) -> bool:
    """Return whether all columns fit on a line as they are."""
    return whole_width(table) <= width


def whole_width(table: "Table") -> int:
    """Return the letters of a line with all columns as they are."""
    return 1 + sum(full_width(table, column) + GAP for column in range(len(table.headings)))


def full_width(table: "Table", column: int) -> int:
    """Return the width of a column of which nothing is folded."""
    return max(map(cell_len, (table.headings[column], *(row[column] for row in table.rows))))


def least_width(table: "Table", column: int) -> int:
    """Return the width of a column of numbers, whose cells are whole and whose heading is folded."""
    heading = max(map(cell_len, _pieces(table.headings[column])), default=0)
    return max(heading, *(cell_len(row[column]) for row in table.rows)) if table.rows else heading


def _room_for_texts(table: "Table", labels: Sequence[int], width: int) -> int:
    """Return the letters for all columns of texts: a third of the line, or what they need if they are folded."""
    whole = sum(full_width(table, column) for column in labels)
    least = min(sum(_least_label(table, column) for column in labels), max(width // 2, NARROWEST * len(labels)))
    return max(least, min(whole, width // 3)) + GAP * len(labels)


def _least_label(table: "Table", column: int) -> int:
    return min(full_width(table, column), TEXT_WIDTH)


def folded(text: str, width: int) -> str:
    """Return a text as lines of at most that many letters, folded between words or after signs; a long one is cut."""
    if cell_len(text) <= width:
        return text
    lines = [""]
    for piece in _pieces(cut(text, MOST_LINES * max(width, NARROWEST))):
        for part in [piece] if cell_len(piece) <= width else chopped(piece, max(width, 1)):
            if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def chopped(piece: str, width: int) -> Iterator[str]:
    """Yield parts of at most that many letters, none of which ends within an escape or a wide letter."""
    part = ""
    for letter in letters(piece):
        if part and cell_len(part + letter) > width:
            yield part
            part = ""
        part += letter
    yield part


def _pieces(text: str) -> list[str]:
    """Return the pieces between which a text may be folded; a sign before a name stays with it."""
    glued = GLUED.match(text)
    first = glued.group() if glued else ""
    pieces = [piece for piece in PIECE.findall(text[len(first) :]) if piece]
    return [first + pieces[0], *pieces[1:]] if pieces else [text]
