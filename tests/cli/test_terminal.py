import re
import sys

import pytest

from fedsim.cli.terminal import columns_that_fit, print_table
from fedsim.results.report.comparing.tables import Table

TABLE = Table(
    ("group", "base", "loss barrier", "worst 10 %", "error", "examples"),
    (False, False, True, True, True, True),
    (
        ("full", "a-checkpoint-with-a-very-long-name.pt", "-0.0186 ± 0.0431", "12.5", "95.00", "1,000"),
        ("fc1", "b.pt", "+0.0001 ± 0.0002", "9.75", "100.00", "1,000"),
    ),
)


@pytest.mark.parametrize("width", [60, 72, 80, 100, 200])
def test_a_narrow_terminal_shows_every_number_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(TABLE)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= width
    for row in TABLE.rows:
        for cell in row[2:]:
            assert re.search(rf"(?<![\d.]){re.escape(cell)}(?![\d.])", printed), cell
    # Texts are folded, and none is cut.
    assert "…" not in printed
    if width < 100:
        assert printed.count("b.pt") == len(list(columns_that_fit(TABLE, width)))


def test_columns_that_do_not_fit_follow_with_the_texts_again() -> None:
    assert list(columns_that_fit(TABLE, 200)) == [[0, 1, 2, 3, 4, 5]]
    assert list(columns_that_fit(TABLE, 60)) == [[0, 1, 2, 3, 4], [0, 1, 5]]
    assert list(columns_that_fit(TABLE, 10)) == [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]
    texts = Table(("a", "b"), (False, False), (("x" * 90, "y"),))
    assert list(columns_that_fit(texts, 20)) == [[0, 1]]
