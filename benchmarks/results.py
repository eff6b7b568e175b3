"""Figures of a benchmark as a table, and as a JSON file in ``benchmarks/results``."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
Row = Mapping[str, Any]


def show(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows as a table, with three significant digits and missing values left empty."""
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [any(isinstance(row.get(column), int | float) for row in rows) for column in columns]
    print(f"\n{title}")
    for line in cells:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def note_of(error: Exception) -> str:
    """Return an error as a short note in one line."""
    return " ".join(str(error).split())[:160]


def save(
    name: str,
    machine: Row,
    limits: Row,
    rows: Sequence[Row],
    stands: Callable[[Row], bool] = lambda row: False,
    **more: Any,
) -> Path:
    """Write the figures as JSON, one line for each row; return the file.

    Parameters
    ----------
    stands
        Whether a row of the existing file remains, because it was not measured again; all rows are dropped if they are
        from another machine.
    """
    path = FOLDER / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {"machine": None}
    kept = [row for row in before["rows"] if stands(row)] if before["machine"] == machine else []
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    head: dict[str, Any] = {"machine": machine, "date": today, "limits": _rounded(limits), **more}
    lines = ",\n".join("  " + json.dumps(_rounded(row)) for row in [*kept, *rows])
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "rows": [\n{lines}\n ]\n}}\n')
    print(f"\nwritten: {path}")
    return path


def _rounded(row: Row) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
