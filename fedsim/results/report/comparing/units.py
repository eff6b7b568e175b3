"""Amounts as text, with the decimal unit that suits them, and back."""

import math

SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_bytes(count: float) -> str:
    """Return a number of bytes with three digits in the decimal unit that suits it, such as ``12.3 MB``."""
    number, unit = _scaled(count)
    return f"{number} {unit}B" if unit else f"{count:g} bytes" if count else "0"


def format_count(count: float) -> str:
    """Return a number with three digits in the decimal unit that suits it, such as ``12.3 M``."""
    number, unit = _scaled(count)
    return f"{number} {unit}" if unit else f"{round(count, 1):g}"


def format_duration(seconds: float) -> str:
    """Return seconds with two digits in the unit that suits them, such as ``12 min``."""
    for scale, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * scale:
            number = seconds / scale
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"


def how_many(count: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 round`` or ``2,000 rounds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_missing(count: int) -> str:
    """Return what follows a number that lacks the values of some clients, such as `` (2 missing)``."""
    return f" ({count} missing)" if count else ""


def read_amount(text: str, unit: str = "") -> float:
    """Read a positive number with its decimal unit, such as ``50 MB`` where the unit is ``B``, or ``1.5M``.

    Raises
    ------
    ValueError
        If it is none.
    """
    number = text.replace(" ", "").lower().removesuffix("bytes" if unit else "").removesuffix(unit.lower())
    scale = next((scale for scale, letter in SCALES if number.endswith(letter.lower())), 1.0)
    amount = float(number[:-1] if scale > 1 else number) * scale
    if not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"{text!r} must be greater than 0")
    return amount


def _scaled(count: float) -> tuple[str, str]:
    """Return three digits and the unit; a number that would be rounded up to 1000 takes the next one."""
    for scale, letter in SCALES:
        if float(f"{count:.3g}") >= scale:
            return f"{count / scale:.3g}", letter
    return f"{count:g}", ""
