"""Methods by the values of a setting, as a paper prints them."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.pivot import Pivot, pivot_of
from fedsim.results.report.comparing.pivot_text import pivot_csv, pivot_latex, pivot_markdown, pivot_table
from fedsim.results.report.comparing.question import Question
from fedsim.results.result import Result
from tests.results.report import cases

FULL, LOCAL, BODY = {"name": "full"}, {"name": "local"}, {"name": "layer_set", "shared": "body"}
# By strategy and alpha: the accuracy of each of two clients, of three seeds.
VALUES = {
    ("FedAvg", 0.1): (FULL, [(0.50, 0.60), (0.52, 0.58), (0.54, 0.62)]),
    ("FedAvg", 1.0): (FULL, [(0.90, 0.80), (0.92, 0.84), (0.91, 0.81)]),
    ("FedPer", 0.1): (BODY, [(0.80, 0.90), (0.82, 0.90), (0.84, 0.90)]),
    ("FedPer", 1.0): (BODY, [(0.88, 0.86), (0.86, 0.82), (0.94, 0.80)]),
    ("local", 0.1): (LOCAL, [(0.80, 0.89), (0.83, 0.90), (0.82, 0.90)]),
}
Run = Callable[..., Result]


@pytest.fixture
def run(tiny: Callable[..., Config], tmp_path: Path) -> Run:
    def build(strategy: dict[str, Any], accuracy: Sequence[float], **changes: Any) -> Result:
        config = tiny(strategy=strategy, **changes)
        return cases.result(config, [accuracy], validation=[accuracy], up=[1000], experiment=tmp_path)

    return build


@pytest.fixture
def pivot(run: Run) -> Pivot:
    results = [
        run(strategy, accuracy, seed=seed, partition={"scheme": "dirichlet", "alpha": alpha})
        for (_, alpha), (strategy, seeds) in VALUES.items()
        for seed, accuracy in enumerate(seeds)
    ]
    return pivot_of(compare(results[::-1]), ["partition.alpha"])


def test_a_cell_is_the_mean_and_standard_deviation_over_the_seeds(pivot: Pivot) -> None:
    assert set(pivot.methods) == {"FedAvg", "FedPer", "local"}
    assert pivot.keys == (("0.1",), ("1.0",))
    assert set(pivot.cells) == {(name, (str(alpha),)) for name, alpha in VALUES}
    for (name, alpha), (_, seeds) in VALUES.items():
        cell, means = pivot.cells[name, (str(alpha),)], np.mean(seeds, axis=1)
        assert (cell.value.mean, cell.std, cell.seeds) == (
            pytest.approx(means.mean()),
            pytest.approx(means.std(ddof=1)),
            3,
        )


def test_the_best_of_a_column_and_its_ties_are_marked(pivot: Pivot) -> None:
    best = {key for key, cell in pivot.cells.items() if cell.is_best}
    ties = {key for key, cell in pivot.cells.items() if cell.is_tie}
    assert best == {("FedPer", ("0.1",)), ("FedAvg", ("1.0",))}
    # FedAvg is far from FedPer at alpha 0.1; the others are within a paired t-test of the best.
    assert ties == {("local", ("0.1",)), ("FedPer", ("1.0",))}
    rows = {row[0]: row[1:] for row in pivot_table(pivot).rows}
    assert rows == {
        "FedAvg": ("56.0 ± 1.7", "86.3 ± 1.5 *"),
        "FedPer": ("86.0 ± 1.0 *", "86.0 ± 1.7 †"),
        "local": ("85.7 ± 1.0 †", "-"),
    }
    assert pivot_table(pivot, "none", marks=False).rows[-1][0] in rows
    assert not any(
        mark in cell for row in pivot_table(pivot, "none", marks=False).rows for cell in row for mark in "*†±"
    )


def test_the_spread_can_be_the_interval(pivot: Pivot) -> None:
    cell = pivot.cells["FedAvg", ("0.1",)]
    assert cell.value.half_width == pytest.approx(cell.std * 4.302652729749464 / np.sqrt(3))  # t of 2 degrees, 97.5 %
    assert f"56.0 ± {100 * cell.value.half_width:.1f}" in str(pivot_table(pivot, "interval").rows)
    assert "half-width of the 95 % interval over 3 seeds" in pivot_table(pivot, "interval").notes[0]


def test_markdown_has_the_best_in_bold(pivot: Pivot) -> None:
    found = re.findall(r"\*\*(.*?)\*\*", pivot_markdown(pivot))
    assert sorted(found) == ["86.0 ± 1.0", "86.3 ± 1.5"]
    assert "**" not in pivot_markdown(pivot, marks=False)


def test_latex_has_the_rules_of_booktabs_and_every_cell(pivot: Pivot) -> None:
    lines = [line for line in pivot_latex(pivot).splitlines() if not line.startswith("%")]
    assert [lines[0], lines[1], lines[3], *lines[-2:]] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert lines[2] == r"alpha & 0.1 & 1.0 \\"
    assert sorted(lines[4:-2]) == [
        r"FedAvg & 56.0 $\pm$ 1.7 & \textbf{86.3 $\pm$ 1.5} \\",
        r"FedPer & \textbf{86.0 $\pm$ 1.0} & 86.0 $\pm$ 1.7 $^{\dagger}$ \\",
        r"local & 85.7 $\pm$ 1.0 $^{\dagger}$ & - \\",
    ]


@pytest.mark.parametrize("shared", ["fc1 | fc*", "[a]", "~fc1_2^", "100 %", "\\end{tabular}", "a & b $x$ #{}", "a\nb"])
def test_latex_of_a_hostile_name_stays_a_table(shared: str, run: Run) -> None:
    results = [
        run({"name": "layer_set", "shared": shared}, [0.5], partition={"scheme": "iid"}, seed=seed) for seed in (0, 1)
    ]
    results.append(run(LOCAL, [0.4], partition={"scheme": "shards"}))
    text = pivot_latex(pivot_of(compare(results), ["partition.scheme", "local.lr"]))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"scheme & iid & shards \\" in body
    # Without commands, grouping and math of its own, a name holds nothing that LaTeX would read.
    assert body.count(r"\end{tabular}") == 1
    assert all(line.count(" & ") == 2 and line.endswith(r" \\") for line in body.splitlines() if " & " in line)
    plain = re.sub(
        r"\\(begin|end)\{tabular\}(\{lrr\})?|\\(top|mid|bottom)rule|\\text(bf|bar|backslash|asciitilde|asciicircum)\b|"
        r"\$\\pm\$|\$\^\{\\dagger\}\$|\\[{}$&#%_]|\\\\$| & |\$-\$",
        "",
        body,
        flags=re.MULTILINE,
    )
    assert not re.search(r"[\\$#%^~&_]", plain)
    assert plain.count("{") == plain.count("}")
    assert not any(line.lstrip().startswith(("[", "*")) for line in body.splitlines())


def test_csv_has_a_line_per_cell_in_full(pivot: Pivot) -> None:
    lines = list(csv.DictReader(io.StringIO(pivot_csv(pivot))))
    assert {(line["method"], line["partition.alpha"]) for line in lines} == {
        (name, str(alpha)) for name, alpha in VALUES
    }
    for line in lines:
        cell = pivot.cells[line["method"], (line["partition.alpha"],)]
        assert (float(line["mean"]), float(line["std"])) == (cell.value.mean, cell.std)
        assert (line["best"], line["tie"]) == (str(cell.is_best).lower(), str(cell.is_tie).lower())


def test_methods_of_other_data_are_not_compared_with_each_other(run: Run) -> None:
    results = [
        run(strategy, [value], clients=clients, seed=seed)
        for clients, values in ((2, (0.9, 0.8)), (4, (0.5, 0.6)))
        for strategy, value in zip((FULL, LOCAL), values, strict=True)
        for seed in (0, 1)
    ]
    found = pivot_of(compare(results), ["local.lr"])
    best = {method for (method, _), cell in found.cells.items() if cell.is_best}
    assert best == {"FedAvg, clients=2", "local, clients=4"}
    assert "best of its column with the same clients" in pivot_table(found).notes[1]


def test_a_method_without_another_one_is_not_the_best(run: Run) -> None:
    found = pivot_of(compare([run(FULL, [0.5]), run(FULL, [0.6], seed=1)]))
    assert not any(cell.is_best for cell in found.cells.values())
    assert not any("best" in note for note in pivot_table(found).notes)


def test_seeds_that_are_missing_and_cells_that_are_not_tested_are_noted(run: Run) -> None:
    results = [run(FULL, [0.5]), run(FULL, [0.6], seed=1), run(BODY, [0.7])]
    notes = pivot_table(pivot_of(compare(results))).notes
    assert notes[0].endswith("over 2 seeds; fewer seeds: 1 for FedPer")
    assert any("1 cell not tested against the best" in note for note in notes)
    iid = {"partition": {"scheme": "iid"}}
    results += [run(FULL, [0.8], **iid), run(BODY, [0.9], **iid)]
    notes = pivot_table(pivot_of(compare(results), ["partition.scheme"])).notes
    assert notes[0].endswith(
        "over 2 seeds; fewer seeds: 1 for FedPer, partition.alpha=0.5 at scheme dirichlet; 1 for all at scheme iid"
    )


def test_only_a_column_of_a_round_is_said_to_be_of_it(run: Run) -> None:
    comparison = compare([run(FULL, [0.5]), run(BODY, [0.7])], Question(target=0.4))
    starts = {
        "personalised": "personalised accuracy in %, last round, 1 seed",
        "at_bytes": "at 2 kB accuracy in %, 1 seed",
        "bytes_to_target": "bytes to 40 %, 1 seed",
    }
    notes = {column: pivot_table(pivot_of(comparison, column=column)).notes[0] for column in starts}
    assert notes == starts


def test_an_option_of_a_method_can_be_a_column(run: Run) -> None:
    results = [run({"name": "fedprox", "mu": mu, "shared": "body"}, [mu]) for mu in (0.1, 0.02)]
    found = pivot_of(compare(results), ["strategy.mu"])
    assert (found.methods, found.keys) == (("FedProx(shared=body)",), (("0.02",), ("0.1",)))


@pytest.mark.parametrize(
    ("settings", "column", "message"),
    [
        (["alpha"], "personalised", "--pivot 'alpha' is not a setting of these runs"),
        (["seed"], "personalised", "--pivot 'seed' cannot be a column"),
        (["strategy.name"], "personalised", "--pivot 'strategy.name' cannot be a column"),
        (["engine.name"], "personalised", "--pivot 'engine.name' cannot be a column"),
        (
            ["local.lr"],
            "personalized",
            "--column 'personalized' is not a measure of these runs; did you mean 'personalised'",
        ),
        (["local.lr"], "difference", "is a column of 'fedsim compare' and needs --baseline"),
        (["local.lr"], "gain_local_better", "needs a run of local"),
        (["local.lr"], "std_half_width", "give the measure, 'std'; .* --spread interval"),
    ],
)
def test_what_cannot_be_a_column_is_named(settings: list[str], column: str, message: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=message):
        pivot_of(compare([run(FULL, [0.5])]), settings, column)


def test_a_measure_is_called_by_its_heading_too_and_counts_of_clients_are_none(run: Run) -> None:
    compared = compare([run(each, [0.5, 0.6]) for each in (FULL, LOCAL)])
    assert pivot_of(compared, (), "Worst 10 %").column.key == "worst"
    with pytest.raises(ConfigError, match="'gain_local' is of all seeds together"):
        pivot_of(compared, (), "gain_local")
    both = [run(each, [0.5 + seed / 10], seed=seed) for each in (FULL, LOCAL) for seed in (0, 1)]
    with pytest.raises(ConfigError, match="'p' is of all seeds together"):
        pivot_of(compare(both), (), "p")
