"""Tables written as CSV, Markdown and LaTeX are read back."""

import csv
import io
import re
from collections.abc import Callable

import pytest

from fedsim.config import Config
from fedsim.results.report.comparing.comparison import Comparison, compare
from fedsim.results.report.comparing.export import OVER_SEEDS, as_csv, as_latex, as_markdown
from fedsim.results.report.comparing.latex import escape_latex
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.tables import Table, comparison_table
from tests.results.report import cases

NASTY = (
    *(
        "layer_set(shared=conv1 | fc*)",
        "a & b",
        "50 %",
        "#1",
        "$x$",
        "{}",
        "a\\b",
        "~^",
        "<",
        ">",
        '"q"',
        "[1]",
        "*",
        "`c`",
    ),
    *("-1.5 ± 0.2", "", "a_b_c", "cut…short"),
)


@pytest.fixture
def comparison(tiny: Callable[..., Config]) -> Comparison:
    def run(strategy: dict[str, str], seed: int, accuracy: float, lr: float = 0.1) -> cases.Result:
        config = tiny(strategy=strategy, seed=seed, local__lr=lr)
        return cases.result(config, [[accuracy, accuracy / 3]], up=[1000], experiment=cases.Path("made-up"))

    return compare(
        [
            *(run({"name": "full"}, seed, accuracy) for seed, accuracy in ((0, 0.7), (1, 0.9))),
            run({"name": "layer_set", "shared": "fc1 | fc2, (head)"}, 0, 0.8, 0.2),
        ],
        Question(baseline="full"),
    )


def table_of(cells: tuple[str, ...]) -> Table:
    """Return a table of one row with these cells, the first aligned to the left."""
    headings = tuple(f"h{number}" for number in range(len(cells)))
    return Table(headings, (False, *[True] * (len(cells) - 1)), (cells,))


def read_markdown(text: str) -> list[list[str]]:
    """Return the cells of a table, its second line included; a backslash takes the meaning from what follows it."""
    lines = []
    for line in text.splitlines():
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)
        assert cells[0] == cells[-1] == ""
        lines.append([re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells[1:-1]])
    return lines


def read_latex(text: str) -> list[list[str]]:
    """Return the cells of the lines that are none of LaTeX's own."""
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\"))] for line in body]


def test_a_csv_file_has_every_number_in_full(comparison: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison, comparison.columns))))
    assert [line["method"] for line in lines] == ["FedAvg", "layer_set(shared=fc1 | fc2, (head))"]
    assert [line["strategy"] for line in lines] == ["full", "layer_set(shared=fc1 | fc2, (head))"]
    assert [(line["seeds"], line["local.lr"]) for line in lines] == [("2", "0.1"), ("1", "0.2")]
    for line, row in zip(lines, comparison.rows, strict=True):
        assert (line["metric"], line["at"]) == ("accuracy", "last")
        for column in comparison.columns:
            value = row.values[column.key]
            if column.kind == "clients":
                continue
            for name, number, is_known in (
                (column.key, value.mean, value.is_known),
                (f"{column.key}_half_width", value.half_width, value.has_width),
            ):
                assert line[name] == (repr(number) if is_known else "")
                assert not is_known or float(line[name]) == number
    assert lines[1]["personalised_half_width"] == ""


def test_a_markdown_table_holds_the_cells(comparison: Comparison) -> None:
    table = comparison_table(comparison)
    headings, line, *rows = read_markdown(as_markdown(table))
    assert tuple(headings) == table.headings
    assert line == ["---:" if numeric else "---" for numeric in table.numeric]
    assert tuple(map(tuple, rows)) == table.rows


@pytest.mark.parametrize("cell", NASTY)
def test_markdown_keeps_what_a_cell_says(cell: str) -> None:
    assert read_markdown(as_markdown(table_of((cell, cell))))[2] == [cell, cell]


def test_a_latex_table_has_the_rules_of_booktabs_and_a_cell_per_column(comparison: Comparison) -> None:
    table = comparison_table(comparison)
    text = as_latex(table, OVER_SEEDS)
    lines = text.splitlines()
    assert lines[0].startswith("% ")
    assert lines[0].endswith("booktabs}. What follows a ± is the half-width of the 95 % interval over seeds.")
    assert "±" not in as_latex(table_of(("1.0",))).splitlines()[0]
    alignment = "".join("r" if numeric else "l" for numeric in table.numeric)
    assert lines[1] == rf"\begin{{tabular}}{{{alignment}}}"
    assert [number for number, line in enumerate(lines) if line.startswith("\\") and not line.endswith(r"\\")] == [
        *(1, 2, 4),
        *(len(lines) - 2, len(lines) - 1),
    ]
    assert (lines[2], lines[4], *lines[-2:]) == (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")
    cells = read_latex(text)
    assert len(cells) == 1 + len(table.rows)
    assert {len(line) for line in cells} == {len(table.headings)}
    assert all(text.count(opening) == text.count(closing) for opening, closing in ("{}", [r"\begin", r"\end"]))


@pytest.mark.parametrize("cell", NASTY)
def test_latex_gets_nothing_that_it_would_take_as_its_own(cell: str) -> None:
    [_, (first, second)] = read_latex(as_latex(table_of((cell, cell))))
    assert first == second == escape_latex(cell)
    # What is left without the commands of the escapes holds no special character.
    rest = re.sub(r"\\text\w+\{\}|\\ldots\{\}|\$(\\pm|-)\$|\\[{}$&#%_]", "", first)
    assert not re.search(r"[\\${}&#%_^~<>|\"]", rest.removeprefix("{}"))
    assert not first.startswith(("[", "*"))
    assert first.isascii()
