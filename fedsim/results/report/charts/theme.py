"""How all charts of a page look; colours are the page's own, which follow its theme."""

from typing import Any

from fedsim.results.report.palette import ALIGNED, AMOUNT, COLOURS, DIVERGING

FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif'
SMALL, USUAL = 11, 12  # pixels of letters
INK, LINE, GRID = "var(--ink)", "var(--axis)", "var(--grid)"  # of text, of lines of axes, and of the grid
LOSS_FORMAT, SHARE_FORMAT, BYTES_FORMAT = ".3~g", "~%", ".3~s"


def config() -> dict[str, Any]:
    """Return the configuration of Vega-Lite."""
    letters = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": SMALL, "titleFontSize": USUAL}
    colours = {"labelColor": INK, "titleColor": INK}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **letters,
            **colours,
            "titleFontWeight": "normal",
            "domainColor": LINE,
            "tickColor": LINE,
            "gridColor": GRID,
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
        "title": {"font": FONT, "fontSize": USUAL + 1, "fontWeight": 600, "color": INK, "subtitleColor": INK},
        "line": {"strokeWidth": 2},
        "rule": {"color": LINE},
        "tick": {"color": INK},
        "text": {"color": INK, "font": FONT, "fontSize": SMALL},
        "point": {"size": 40},
        "range": {
            "category": list(COLOURS),
            "diverging": list(DIVERGING),
            "heatmap": list(AMOUNT),
            "ramp": list(AMOUNT),
            "ordinal": list(ALIGNED),
        },
    }
