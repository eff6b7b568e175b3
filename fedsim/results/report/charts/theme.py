"""How all charts of a page look, on a light and on a dark page."""

from typing import Any

from fedsim.results.report.palette import ALIGNED, AMOUNT, COLOURS, DIVERGING

FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif'
SMALL, USUAL = 11, 12  # pixels of letters
# Text, lines of axes, and grid.
INK = {"light": ("#1a1a1a", "#767676", "#e3e3e3"), "dark": ("#e8e8ea", "#8b8b93", "#34343c")}
LOSS_FORMAT, SHARE_FORMAT, BYTES_FORMAT = ".3~g", "~%", ".3~s"


def config(theme: str) -> dict[str, Any]:
    """Return the configuration of Vega-Lite for a theme: ``light`` or ``dark``."""
    ink, line, grid = INK[theme]
    letters = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": SMALL, "titleFontSize": USUAL}
    colours = {"labelColor": ink, "titleColor": ink}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **letters,
            **colours,
            "titleFontWeight": "normal",
            "domainColor": line,
            "tickColor": line,
            "gridColor": grid,
            "labelOverlap": True,
            "labelLimit": 160,
        },
        "legend": {
            **letters,
            **colours,
            "orient": "bottom",
            "titleFontWeight": "normal",
            "labelLimit": 240,
            "symbolStrokeWidth": 2,
            "symbolLimit": 0,  # which hides none
        },
        "header": {**letters, **colours, "titleFontWeight": "normal", "labelFontSize": USUAL, "labelLimit": 280},
        "title": {"font": FONT, "fontSize": USUAL + 1, "fontWeight": 600, "color": ink, "subtitleColor": ink},
        "line": {"strokeWidth": 2},
        "rule": {"color": line},
        "tick": {"color": ink},
        "text": {"color": ink, "font": FONT, "fontSize": SMALL},
        "point": {"size": 40},
        "range": {
            "category": list(COLOURS),
            "diverging": list(DIVERGING),
            "heatmap": list(AMOUNT),
            "ramp": list(AMOUNT),
            "ordinal": list(ALIGNED),
        },
    }
