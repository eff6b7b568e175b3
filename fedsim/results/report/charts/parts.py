"""Parts of charts that Altair does not copy with them.

It copies a chart several times as the chart becomes part of another, and an axis has 78 properties. None of these parts
changes after it is made.
"""

from typing import Any, Self

import altair as alt

# Of an axis of whole numbers. On a short one Vega also puts ticks between them, whose labels would be rounded to them.
WHOLE: dict[str, Any] = {"format": "d", "tickMinStep": 1, "labelExpr": "datum.value % 1 ? '' : datum.label"}


class _Shared:
    def __deepcopy__(self, memo: object) -> Self:
        return self


class Axis(_Shared, alt.Axis):
    """Axis of a chart."""


class Legend(_Shared, alt.Legend):
    """Legend of a chart."""


class Scale(_Shared, alt.Scale):
    """Scale of a channel."""


class Tooltip(_Shared, alt.Tooltip):  # type: ignore[misc]  # of Altair's own base classes
    """Line of the text that a pointer shows."""
