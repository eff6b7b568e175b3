"""Texts of docstrings as Markdown."""

import re
from collections.abc import Iterable, Sequence


def as_markdown(text: str) -> str:
    """Turn reStructuredText's code, in double or single backticks, into Markdown's, and text into text."""
    parts = re.split(r"(``.+?``|`.+?`)", " ".join(text.split()))
    return "".join(f"`{part.strip('`')}`" if i % 2 else escaped(part) for i, part in enumerate(parts))


def escaped(text: str) -> str:
    """Escape what Markdown would take for markup."""
    return re.sub(r"([\\*_\[\]<>|$])", r"\\\1", text)


def code(text: str) -> str:
    """Return a text as code, also in a cell of a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table, without the columns in which all cells are empty."""
    rows = list(rows)
    kept = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    lines = [[line[i] for i in kept] for line in (titles, ["---"] * len(titles), *rows)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"```{{container}} keys\n{text}\n```\n"
