"""Messages as one line of limited length: long values and lists are cut in the middle, the rule and the remedy stay."""

import re
from collections.abc import Iterable, Iterator, Sequence

LINE = 300  # letters of a line that says what went wrong
MARK = " ... "
# Letters that are left of long values, tried one after the other until the line is short enough.
LEFT = (120, 80, 60, 40, 25)
LAST = LEFT[-1]
LOOKED_AT = 10_000  # letters in which values are looked for, which can take the square of their number
# Values as messages have them: quoted, beginning with a bracket, or without spaces, such as paths.
BEGINNING = re.compile(rf"""(?<!\w)(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?!\w)|[\[{{]|[^\s\[{{'"]\S{{{LAST},}}""")
# Control characters as `printable` writes them.
ESCAPE = re.compile(r"\\(?:[abfnrtv]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
LETTER = re.compile(rf"{ESCAPE.pattern}|.", re.DOTALL)
# Names with commas between them, as in: known are: conv1, conv2, head. A colon may be inside a name.
LIST = re.compile(r"(?:[^\s,;:()](?:[^,;:()]|:(?=\S))*, ){3,}(?:[^,;:()]|:(?=\S))+")


def one_line(text: str, longest: int = LINE) -> str:
    """Return a message as one line of printable letters, at most ``longest`` of them."""
    line = printable(" ".join(text.split()))
    if len(line) <= longest:
        return line
    line = cut(line, LOOKED_AT)
    lists = [found.span() for found in LIST.finditer(line)]
    # Of a list of names the middle is left out, not that of each name.
    values = [(start, stop) for start, stop in _values(line) if not any(a <= start and stop <= b for a, b in lists)]
    shorter = next((each for left in LEFT if len(each := _with_cut(line, values, left)) <= longest), None)
    if shorter:
        return shorter
    line = _with_cut(line, values, LAST)
    for found in sorted(LIST.findall(line), key=len, reverse=True):
        line = line.replace(found, _cut_list(found, max(LAST, len(found) - max(0, len(line) - longest))))
    return cut(line, longest)


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text whose control characters and lone surrogates are written as escapes.

    Parameters
    ----------
    lines
        Whether the text may have several lines: their ends, and tabs, stay.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1] for letter in text)


def cut(text: str, longest: int) -> str:
    """Return a text without its middle if it is longer; of what is left, two thirds are its beginning."""
    if len(text) <= longest:
        return text
    left = longest - len(MARK)
    tail = left // 3
    end, start = left - tail, len(text) - tail
    for match in ESCAPE.finditer(text):  # which is one letter of a name, and says nothing in part
        if match.start() < end < match.end():
            end = match.start()
        if match.start() < start < match.end():
            start = match.end()
    return f"{text[:end].rstrip()}{MARK}{text[start:].lstrip()}"


def first_few(texts: Sequence[str], most: int) -> str:
    """Return texts with commas between them: of many the first ones, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def with_and(texts: Sequence[str]) -> str:
    """Return texts as in a sentence, such as ``a, b and c``."""
    return " and ".join([*filter(None, [", ".join(texts[:-1])]), texts[-1]])


def a_type(value: object) -> str:
    """Return a value's type as a sentence has it, such as ``an int``."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def from_to(values: Iterable[float]) -> str:
    """Return the range of whole numbers, such as ``3 to 1,200``, or the number if there is only one."""
    found = sorted({*map(int, values)})
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def letters(text: str) -> list[str]:
    """Return the letters of a text, each escape as one."""
    return LETTER.findall(text)


def _cut_list(names: str, longest: int) -> str:
    """Return names with commas between them, without those in the middle."""
    start, mark, end = cut(names, longest).partition(MARK)
    if not mark:
        return start
    # A part of a name says nothing, unless it is the only one.
    return f"{start[: start.rfind(',') + 1] or start}{mark}{end.partition(', ')[2] or end}"


def _with_cut(line: str, values: Iterable[tuple[int, int]], longest: int) -> str:
    parts, end = [], 0
    for start, stop in values:
        parts += [line[end:start], cut(line[start:stop], longest)]
        end = stop
    return "".join([*parts, line[end:]])


def _values(line: str) -> Iterator[tuple[int, int]]:
    """Yield where the long values in a line are: quoted, in brackets that match, or without a space."""
    closing = _closing(line)
    end = 0
    while found := BEGINNING.search(line, end):
        start, stop = found.span()
        stop = closing.get(start, stop)
        if stop - start > LAST:
            yield start, stop
        end = stop


def _closing(line: str) -> dict[int, int]:
    """Return the places after the brackets that close others, by the places of these."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for place, letter in enumerate(line):
        if letter in "[{":
            opened.append(place)
        elif letter in "]}" and opened:
            found[opened.pop()] = place + 1
    return found
