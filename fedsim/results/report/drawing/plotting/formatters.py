"""How the ticks of axes are written."""

import re
from collections.abc import Sequence

from matplotlib.ticker import Formatter, LogFormatterSciNotation

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Percents(Formatter):
    """Writes shares in percent, all with as many decimals as it takes to be exact; the sign is in the axis' label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the text of one share."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the texts of an axis."""
        percents = [100 * value for value in values]
        digits = next((n for n in range(6) if all(abs(round(each, n) - each) < 1e-7 for each in percents)), 6)
        return [
            f"{round(each, digits) + 0.0:.{digits}f}" for each in percents
        ]  # adding zero takes the minus from a zero


class PowersOfTen(LogFormatterSciNotation):
    """Writes ticks of a logarithmic axis as plain text, such as 10⁻³, where formulas are not drawn."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the text of a tick."""
        text = re.sub(r"\$\\mathdefault\{(.*)\}\$", r"\1", super().__call__(x, pos)).replace(r"\times", "\u00d7")
        return re.sub(r"\^\{(.*?)\}", lambda power: power[1].translate(SUPERSCRIPTS), text)
