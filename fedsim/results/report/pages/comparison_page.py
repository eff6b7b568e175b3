"""The page that compares several runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedsim.results.report.charts.curve_data import curves_of_panels
from fedsim.results.report.charts.curves import curves
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.comparable import comparable
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.export import OVER_SEEDS, as_csv, as_latex
from fedsim.results.report.comparing.groups import grouped
from fedsim.results.report.comparing.pairs import Baseline, reference
from fedsim.results.report.comparing.question import DEFAULT, Question
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.report.drawing import compared as drawing
from fedsim.results.report.facets import Panel, named, panels_of
from fedsim.results.report.pages.by_layer import client_section, strip_section, time_section, traffic_section
from fedsim.results.report.pages.citation import bibtex
from fedsim.results.report.pages.comparison_barriers import barrier_sections
from fedsim.results.report.pages.comparison_tables import comparison_tables, is_at_cost
from fedsim.results.report.pages.configuration import compared_paths, comparing_command, runs_table, shared_settings
from fedsim.results.report.pages.html import unchecked, write_page
from fedsim.results.report.pages.pivot import marks_of, pivot_data
from fedsim.results.report.pages.section import Section
from fedsim.results.result import Result
from fedsim.training.metrics import label

HOW_TO_READ_CURVES = (
    "By rounds, a method is better whose line is higher, or lower for a loss. By bytes, passes or seconds, the "
    "question is what a budget buys: compare where the lines cross a vertical line, not where they end. Wide bands "
    "mean that the seeds disagree; lines whose bands overlap in most rounds cannot be told apart. Personalised models "
    "are evaluated right after they received the server's layers, before they train again, so a line may dip after "
    "rounds that average layers which clients disagree on."
)


@unchecked
def write_comparison(
    results: Sequence[Result], out: Path, question: Question = DEFAULT, *, export: bool = False
) -> Path:
    """Write the page that compares several runs into the folder ``out``; return its path.

    Raises
    ------
    ConfigError
        If the question cannot be answered with these runs.
    """
    compared = compare(results, question)
    verdict = verdict_of(compared)
    results, _ = comparable(results, question)
    columns = [column for column in compared.columns if not is_at_cost(column)]
    marks = marks_of(compared, columns)
    pivot = pivot_data(compared, columns, marks)
    panels = panels_of(grouped(results, question.by))
    content = {
        "title": f"{len(results)} runs on {', '.join(sorted({result.data for result in results}))}",
        "subtitle": ", ".join(compared_paths(results)),
        "verdict": verdict.sentences,
        "lights": verdict.lights,
        "has_pivot": pivot is not None,
        "tables": comparison_tables(results, compared, marks),
        "runs": runs_table(results, out),
        "details": [("Settings that all runs have", shared_settings(results))],
        "copied": [
            ("This comparison again:", comparing_command(results, question)),
            ("BibTeX:", bibtex(results)),
        ],
    }
    texts = {"csv": as_csv(compared, columns), "latex": as_latex(comparison_table(compared, columns), OVER_SEEDS)}
    data = {"pivot": pivot, "texts": texts}
    return write_page(out, content, _sections(results, panels, question), data, export=export)


def _sections(results: Sequence[Result], panels: Sequence[Panel], question: Question) -> list[Section]:
    groups = named(panels)
    main, asked = Question().of(results).metric, question.of(results).metric
    baseline = Baseline(question.baseline, results, question) if question.baseline else reference("local", results)
    sections = [
        Section(
            "accuracy",
            f"{label(asked, capital=True)} over rounds, bytes, passes or time",
            "Personalised: each client's own model on its own test data, mean over the clients; global: the server's "
            "model on the server's test data. Lines are means over the seeds, bands span the lowest to the highest "
            "seed. Click a name in the legend to see it alone, and with the shift key several.",
            partial(drawing.compared_curves, panels, asked),
            curves(curves_of_panels(panels, asked)),
            HOW_TO_READ_CURVES,
            {what: partial(drawing.compared_costs, panels, cost, asked) for what, cost in _costs_of(results).items()},
        ),
    ]
    parts = [
        strip_section(groups),
        *barrier_sections(groups),
        client_section(groups, main, partial(drawing.compared_clients, panels), baseline),
        traffic_section(groups),
        time_section(groups),
    ]
    return [*sections, *(part for part in parts if part is not None)]


def _costs_of(results: Sequence[Result]) -> dict[str, str]:
    """Return the costs that are drawn in files of their own, by the names of these."""
    has_passes = any(costs.spent(result, costs.PASSES).notna().all() for result in results)
    return {"traffic": costs.BYTES, **({"compute": costs.PASSES} if has_passes else {})}
