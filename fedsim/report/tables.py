"""The comparison as a table, for the terminal and for a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.report.figures import format_bytes
from fedsim.report.results import Row


@dataclass(frozen=True)
class Table:
    """Headings and cells as text; ``numeric`` says which columns are aligned to the right."""

    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison_table(rows: Sequence[Row], metric: str = "accuracy") -> Table:
    """Write a comparison as text: accuracies in percent, losses in nats per example.

    Personalised is mean ± standard deviation over the clients, worst 10 % the mean over the worst tenth of them,
    traffic up and down over all rounds and clients, seconds the wall time of all rounds.
    """
    settings = tuple(rows[0].settings)
    headings = (
        "strategy",
        *settings,
        "seeds",
        "rounds",
        "personalised",
        "worst 10 %",
        "global",
        "traffic",
        "seconds",
    )
    cells = tuple(
        (
            row.strategy,
            *(str(row.settings[key]) for key in settings),
            str(row.seeds),
            str(row.rounds),
            f"{_metric(row.personalised, metric)} ± {_metric(row.spread, metric)}",
            _metric(row.worst, metric),
            _metric(row.global_, metric),
            format_bytes(row.bytes_total),
            f"{row.seconds:.1f}",
        )
        for row in rows
    )
    return Table(headings, (False, *[False] * len(settings), *[True] * 7), cells)


def _metric(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if metric == "accuracy" else f"{value:.3f}"
