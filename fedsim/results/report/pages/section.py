"""A figure with a title and what it shows."""

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Parameters
    ----------
    name
        Name of the figure's files, without the suffix.
    """

    name: str
    title: str
    text: str
    figure: Figure
