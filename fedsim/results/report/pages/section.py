"""A part of a page: a chart or a figure with a title and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altair.vegalite.v6.api import ChartType
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Parameters
    ----------
    name
        Name of the figure's files, without the suffix.
    draw
        Draws the figure of PDF and PNG files; None if there is none.
    chart
        What the page shows, in the style of `charts.theme`; None if no value is known.
    how_to_read
        What the page folds away below the chart: what is good or bad, how it is computed, and pitfalls.
    more
        Further figures of PDF and PNG files, by the names of these, which the chart shows too.
    findings
        What the chart says, a sentence each, above its text.
    """

    name: str
    title: str
    text: str
    draw: Callable[[], Figure] | None
    chart: ChartType | None = None
    how_to_read: str = ""
    more: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    findings: Sequence[str] = ()

    @property
    def figures(self) -> dict[str, Callable[[], Figure]]:
        """The figures of files, by the names of these."""
        own = {} if self.draw is None else {self.name: lambda: self.figure}
        return {**own, **self.more}

    @cached_property
    def figure(self) -> Figure:
        """The figure, drawn when it is first asked for."""
        assert self.draw is not None
        return self.draw()
