"""The table and the figure of what each client gets out of a run, by hand."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.config import Config
from fedsim.results.folder import RunFolder, metric_row
from fedsim.results.report import read_result, write_run
from fedsim.results.report.drawing.before_after import before_and_after
from fedsim.results.report.pages.evaluation import evaluation_note, evaluation_sections, evaluation_table
from fedsim.results.report.pages.run_page import _sentence
from fedsim.results.result import Result
from tests.results.report import cases

# Accuracy by round, model and data of clients 0, 1, ...; those of unseen clients begin at 7.
VALUES: Mapping[tuple[int, str, str], list[float]] = {
    (1, "personalised", "validation"): [0.9, 0.8],
    (1, "personalised", "test"): [0.2, 0.6],
    (1, "global", "test"): [0.1, 0.1],
    (2, "personalised", "validation"): [0.7, 0.9],
    (2, "personalised", "test"): [0.5, 0.7],
    (2, "personalised", "server"): [0.3, 0.3],
    (2, "personalised", "unseen"): [0.0, 0.0],
    (2, "global", "test"): [0.2, 0.4],
    (2, "trained", "test"): [0.8],
    (2, "fine-tuned", "validation"): [1.0, 1.0],
    (2, "fine-tuned", "test"): [1.0, 0.6],
    (2, "fine-tuned", "unseen"): [1.0, 0.0],
}


@pytest.fixture
def result_of(tiny: Callable[..., Config]) -> Callable[..., Result]:
    """Build a result with these accuracies; the server's model has 0.55 in round 1 and 0.65 in round 2."""

    def build(values: Mapping[tuple[int, str, str], list[float]]) -> Result:
        rows = [metric_row(number, None, "test", "global", "accuracy", 0.45 + 0.1 * number, 60) for number in (1, 2)]
        for (number, model, split), each in values.items():
            first = 7 if split == "unseen" else 0
            rows += [
                metric_row(number, client, split, model, "accuracy", value, 10)
                for client, value in enumerate(each, first)
            ]
        nothing: Any = pd.DataFrame()
        return Result(RunFolder(Path("run")), tiny(), pd.DataFrame(rows), nothing, nothing, nothing, nothing)

    return build


def test_the_table_is_the_grid_in_the_best_round_and_the_last(result_of: Callable[..., Result]) -> None:
    table = evaluation_table(result_of(VALUES))
    each = ("worst 10 %", "Jain")
    assert table.headings == ("model", "on", "clients", "best round (1)", *each, "last round (2)", *each)
    assert table.numeric == (False, False, *[True] * 7)
    none = ("-", "-", "-")
    # Jain: (0.2 + 0.6)^2 / (2 (0.04 + 0.36)) = 0.8, and so on.
    assert table.rows == (
        ("global", "own test data", "2", "10.0 ± 0.0", "10.0", "1.000", "30.0 ± 10.0", "20.0", "0.900"),
        ("global", "server's test data", "-", "55.0", "-", "-", "65.0", "-", "-"),
        ("as received", "own test data", "2", "40.0 ± 20.0", "20.0", "0.800", "60.0 ± 10.0", "50.0", "0.973"),
        ("as received", "server's test data", "2", *none, "30.0 ± 0.0", "30.0", "1.000"),
        ("as received", "own test data of unseen clients", "2", *none, "0.0 ± 0.0", "0.0", "-"),
        ("after local training", "own test data", "1", *none, "80.0 ± 0.0", "80.0", "1.000"),
        ("after fine-tuning", "own test data", "2", *none, "80.0 ± 20.0", "60.0", "0.941"),
        ("after fine-tuning", "own test data of unseen clients", "2", *none, "50.0 ± 50.0", "0.0", "0.500"),
    )


def test_test_data_do_not_choose_the_best_round(result_of: Callable[..., Result]) -> None:
    better_on_validation = VALUES | {(2, "personalised", "validation"): [0.9, 0.9]}
    result = result_of(better_on_validation)
    assert evaluation_table(result).headings == ("model", "on", "clients", "last round (2)", "worst 10 %", "Jain")
    assert "Best round: 2, and the last one, by the mean accuracy on the clients' validation" in evaluation_note(result)
    without = {key: value for key, value in VALUES.items() if key[2] != "validation"}
    assert len(evaluation_table(result_of(without)).headings) == 6
    assert "there is no best round" in evaluation_note(result_of(without))


def test_a_client_whose_model_diverged_is_missing_from_a_mean_that_says_so(result_of: Callable[..., Result]) -> None:
    table = evaluation_table(result_of(VALUES | {(2, "fine-tuned", "test"): [float("nan"), 0.6]}))
    [row] = [row for row in table.rows if row[:2] == ("after fine-tuning", "own test data")]
    assert row[2:] == ("2", "-", "-", "-", "60.0 ± 0.0 (1 missing)", "60.0 (1 missing)", "1.000 (1 missing)")


def test_the_figure_pairs_each_client_before_and_after(result_of: Callable[..., Result]) -> None:
    values = VALUES | {(2, "personalised", "test"): [0.7, 0.5]}
    own, unseen = before_and_after(result_of(values)).axes
    assert (own.get_title(), unseen.get_title()) == ("Own test data", "Unseen clients")
    assert [text.get_text() for text in own.get_xticklabels()] == ["1", "0"]  # sorted by what they receive
    points = {line.get_label(): line.get_ydata() for line in own.lines}
    assert np.array_equal(points["as received"], [0.5, 0.7])
    assert np.array_equal(points["after fine-tuning"], [0.6, 1.0])
    assert np.array_equal(points["after local training"], [np.nan, 0.8], equal_nan=True)
    [lines] = own.collections
    assert [segment[:, 1].tolist() for segment in lines.get_segments()] == [[0.5, 0.6], [0.7, 1.0]]
    assert [text.get_text() for text in unseen.get_xticklabels()] == ["7", "8"]


@pytest.mark.slow
def test_a_run_that_measures_no_more_than_by_default_has_a_table_and_no_figure(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    result = read_result(play(tiny(rounds=1, barriers={"every": 0})))
    assert evaluation_sections(result) == []
    page = re.sub(r">\s+<", "><", write_run(result, tmp_path / "out", export=True).read_text())
    assert page.count('<th scope="row">as received</th><td>own test data</td>') == 1
    accuracy = result.by_client("personalised").to_numpy()
    assert f'<td class="number">{100 * accuracy.mean():.1f} ± {100 * accuracy.std():.1f}</td>' in page
    for kind, expected in (("md", "| as received | own test data |"), ("tex", "as received & own test data &")):
        assert expected in " ".join((tmp_path / "out" / f"evaluation.{kind}").read_text().split())
    assert "a ± is the standard deviation over the clients." in (tmp_path / "out" / "evaluation.tex").read_text()
    assert not (tmp_path / "out" / "evaluation.png").exists()


@pytest.mark.slow
def test_a_run_that_fine_tunes_has_the_figure_on_its_page(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    settings = {"models": ["personalised", "global", "fine-tuned"], "fine_tune_epochs": 1}
    result = read_result(play(tiny(rounds=1, unseen=0.25, evaluation=settings, barriers={"every": 0})))
    page = write_run(result, tmp_path / "out", export=True).read_text()
    assert "Accuracy before and after training on each client" in page
    assert (tmp_path / "out" / "evaluation.pdf").stat().st_size > 1000


def test_the_sentence_of_a_run_counts_every_client_and_marks_those_without_a_value(tiny: Callable[..., Config]) -> None:
    lost = (1, 2, "test", "personalised", "accuracy", None)
    text = _sentence(cases.result(tiny(), [[0.4, 0.6]], more=[lost]))
    assert "the 3 clients' own models have a mean accuracy of 50.0% (1 missing) on their own test data" in text
