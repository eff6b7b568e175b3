"""A table on a terminal of any width: no number is cut, and what has no room is named or follows."""

import re
import sys
from dataclasses import replace

import pytest

from fedsim.cli.layout import columns_that_fit, folded, parts_that_fit
from fedsim.cli.terminal import print_table, print_texts
from fedsim.results.report.comparing.tables import Table

TABLE = Table(
    ("group", "base", "loss barrier", "worst 10 %", "error", "examples"),
    (False, False, True, True, True, True),
    (
        ("full", "a-checkpoint-with-a-very-long-name.pt", "-0.0186 ± 0.0431", "12.5", "95.00", "1,000"),
        ("fc1", "b.pt", "+0.0001 ± 0.0002", "9.75", "100.00", "1,000"),
    ),
)
COMPARED = Table(
    ("strategy", "partition.alpha", "seeds", "rounds", "personalised", "std", "global", "better / equal / worse"),
    (False, False, *[True] * 6),
    (
        (
            "layer_set(shared=conv1 | head, buffers=personal)",
            "0.1",
            "3",
            "30",
            "82.6 ± 24.2",
            "6.1",
            "9.4",
            "16 / 0 / 8",
        ),
        ("x" * 900, "0.1", "3", "30", "75.6 ± 3.1", "7.2", "94.4 ± 0.2", "-"),
        ("数据集名称很长的一个策略名称", "10.0", "3", "30", "87.3 (3 missing)", "7.5", "37.7 ± 1.2", "3 / 12 / 9"),
        ("[bold]\x1b[31m", "10.0", "3", "30", "100.0", "0.0", "100.0", "0 / 0 / 0"),
    ),
    ("a note",),
    (0, 0, 2, 6, 1, 5, 2, 3),
)


def _printed(
    table: Table,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: str | None = None,
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(table, more=more)
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def _has(printed: str, cell: str) -> bool:
    return bool(re.search(rf"(?<![\d.]){re.escape(cell)}(?![\d.])", printed))


@pytest.mark.parametrize("width", [60, 72, 80, 100, 200])
def test_a_narrow_terminal_shows_every_number_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    printed = _printed(TABLE, width, monkeypatch, capsys)
    assert max(map(len, printed.splitlines())) <= width
    for row in TABLE.rows:
        assert all(_has(printed, cell) for cell in row[2:])
    # Texts are folded, and none is cut.
    assert "…" not in printed
    if width < 100:
        assert printed.count("b.pt") == len(list(parts_that_fit(TABLE, width)))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_columns_for_which_a_terminal_has_no_room_are_counted_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    printed = _printed(COMPARED, width, monkeypatch, capsys, "--columns all")
    table, notes = printed.split(" + ") if " + " in printed else (printed, "")
    assert "…" not in printed
    assert "\x1b" not in printed
    if width >= 40:
        assert max(map(len, table.splitlines())) <= width
    columns = columns_that_fit(COMPARED, width)
    assert {0, 1, 4} <= set(columns)  # what tells the rows apart, and the answer
    for row in COMPARED.rows:
        assert all(_has(table, row[column]) for column in columns if COMPARED.numeric[column])
    dropped = [heading for column, heading in enumerate(COMPARED.headings) if column not in columns]
    if dropped:
        counted = "1 column" if len(dropped) == 1 else f"{len(dropped)} columns"
        assert " ".join(notes.split()).startswith(f"{counted}: --columns all ({', '.join(dropped)}) ")
        assert max(map(len, notes.splitlines())) <= width
    assert "a note" in printed
    assert bool(dropped) == (width < 120)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_note_is_wrapped_to_a_terminal_and_an_escape_stays_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    note = "runs/" + "long-" * 40 + "\u202e" * 60 + ": it failed, for a reason of several words that is told in full"
    printed = _printed(Table(("a",), (True,), (("1",),), (note,)), width, monkeypatch, capsys)
    lines = printed.splitlines()[4:]
    assert max(map(len, lines)) <= width
    assert len(lines) > 1
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", note).replace("\u202e", r"\u202e")
    assert not any(re.search(r"\\u?[0-9a-f]{0,3}$", line) for line in lines)


def test_columns_are_left_out_by_their_priority() -> None:
    kept = [columns_that_fit(COMPARED, width) for width in range(20, 200)]
    assert kept[0] == [0, 1, 4]
    assert kept[60] == [0, 1, 2, 4, 6, 7]
    assert kept[-1] == list(range(8))
    by_priority = replace(COMPARED, priorities=(0, 0, *range(6, 0, -1)))
    assert columns_that_fit(by_priority, 20) == [0, 1, 7]


def test_columns_that_do_not_fit_follow_with_the_texts_again_where_nothing_else_shows_them() -> None:
    assert list(parts_that_fit(TABLE, 200)) == [[0, 1, 2, 3, 4, 5]]
    assert list(parts_that_fit(TABLE, 60)) == [[0, 1, 2, 3, 4], [0, 1, 5]]
    assert list(parts_that_fit(TABLE, 10)) == [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]
    texts = Table(("a", "b"), (False, False), (("x" * 90, "y"),))
    assert list(parts_that_fit(texts, 20)) == [[0, 1]]


def test_a_table_that_is_piped_has_all_columns_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(COMPARED, more="--columns all")
    first, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert all(heading in first for heading in COMPARED.headings)
    assert [row.split()[0][:3] for row in rows] == ["lay", "xxx", "数据集", "[bo", "a"]


def test_no_letter_is_folded_in_its_middle() -> None:
    for width in range(1, 30):
        lines = folded(r"\u202e" * 3 + r"\x1b" * 3 + "数据集", width).split("\n")
        assert all(re.fullmatch(r"(\\u202e|\\x1b|[^\\])*", line) for line in lines) or " ... " in "".join(lines)


def test_texts_are_folded_between_their_parts() -> None:
    assert folded("layer_set(shared=body)", 22) == "layer_set(shared=body)"
    assert folded("layer_set(shared=body)", 18) == "layer_set(\nshared=body)"
    assert folded("worst 10 %", 5) == "worst\n10 %"
    assert folded("> local, seen", 8) == "> local,\nseen"
    assert folded("x" * 12, 5) == "xxxxx\nxxxxx\nxx"


def test_texts_are_wrapped_to_eighty_columns_or_fewer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_texts("word " * 40 + "\x1b[31m" + "x" * 200)
    piped = capsys.readouterr().out.splitlines()
    assert max(map(len, piped)) <= 80
    assert [line.startswith("  ") for line in piped] == [False, *[True] * (len(piped) - 1)]
    assert "\\x1b[31m" in "".join(piped)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_texts("word " * 40)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 30
