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
    """Write a table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
