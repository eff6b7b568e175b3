"""Numbers that a page quotes, and the committed tables that they come from."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.results.report.comparing.statistics import interval

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
NUMBER = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?"


def read(name: str) -> pd.DataFrame:
    """Return a table below ``experiments/results``."""
    return pd.read_csv(RESULTS / name)


def over_seeds(values: Sequence[float] | pd.Series) -> list[float]:
    """Return the mean over the seeds and the half-width of its interval, which a page joins by ±."""
    found = interval(np.asarray(values))
    return [found.mean, found.half_width]


def is_shown(values: pd.Series) -> bool:
    """Return whether the interval of a mean over seeds excludes 0."""
    mean, half_width = over_seeds(values)
    return abs(mean) > half_width


def assert_near(text: str, value: float, where: str) -> None:
    """Check that a number as written is a value rounded to its digits."""
    digits = len(text.partition(".")[2])
    # A mean that lies between two roundings may have been rounded to either.
    assert abs(float(text.replace(",", "")) - value) <= 0.5 * 10**-digits + 1e-9, f"{where}: {text} is {value:.4f}"


def assert_quoted(page: str, text: str, *values: float) -> None:
    """Check that a page has a text once, with these values where it has ``{}``, rounded as the page rounds them."""
    content = " ".join((ROOT / page).read_text().replace("**", "").split())
    pattern = f"({NUMBER})".join(map(re.escape, text.split("{}")))
    found = re.findall(pattern, content)
    assert len(found) == 1, f"{page} has {text!r} {len(found)} times"
    numbers = found[0] if isinstance(found[0], tuple) else found
    assert len(numbers) == len(values)
    for number, value in zip(numbers, values, strict=True):
        assert_near(number, value, f"{page}: {text}")


def tables_of(page: str) -> dict[str, dict[str, list[str]]]:
    """Return the tables of a page by their headings, each with the numbers of its rows by their first cells.

    First cells that are no name of their own are joined with the second ones.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(), flags=re.MULTILINE):
        heading, _, *lines = block.replace("**", "").splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        first = [row[0] for row in rows]
        labels = first if len(set(first)) == len(first) else [f"{row[0]}, {row[1]}" for row in rows]
        skipped = 1 if labels is first else 2
        found[heading] = {
            label: re.findall(NUMBER, " | ".join(re.sub(r"`[^`]*`", "", cell) for cell in row[skipped:]))
            for label, row in zip(labels, rows, strict=True)
        }
    return found


def assert_row(page: str, heading: str, label: str, values: Sequence[float], skipped: int = 0) -> None:
    """Check the numbers in a row of the table of a page whose heading begins like this, but for the first ones."""
    [table] = [rows for each, rows in tables_of(page).items() if each.startswith(heading)]
    numbers = table[label][skipped:]
    assert len(numbers) == len(values), f"{page}, {label}: {numbers}"
    for number, value in zip(numbers, values, strict=True):
        assert_near(number, value, f"{page}: {label}")
