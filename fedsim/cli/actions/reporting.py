"""``fedsim compare``, ``report`` and ``check``: what runs have shown."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.cli.terminal import print_lines, print_table, print_texts, say, write_file, write_to
from fedsim.config.expectation import Expectation
from fedsim.experiment import api
from fedsim.results import report
from fedsim.results.check.check import check as check_runs
from fedsim.results.report.comparing.comparable import comparable, unfinished_texts
from fedsim.results.report.comparing.export import OVER_SEEDS, as_latex, as_markdown
from fedsim.results.report.comparing.question import Question
from fedsim.results.result import Result

logger = logging.getLogger(__name__)


def compare(
    paths: Sequence[Path], question: Mapping[str, Any], files: Mapping[str, Path | None], out: Path | None
) -> None:
    """Print one table of several runs, and write the page and files."""
    results = api.load(paths)
    compared = api.compare(results, **question)
    print_texts(*compared.verdict.lines)
    print_table(compared.text, more=None if question["columns"] else "--columns all")
    texts = {
        "--csv": lambda: compared.csv,
        "--markdown": lambda: as_markdown(compared.text),
        "--latex": lambda: as_latex(compared.text, OVER_SEEDS),
    }
    for option, path in files.items():
        if path is not None:
            write_to(path.parent, partial(write_file, path, texts[option]()), "table", option)
    folder = out or _common_folder(results)
    write_to(folder, partial(report.write_comparison, results, folder, compared.question))


def write_report(paths: Sequence[Path], out: Path | None, *, unfinished: bool = False) -> None:
    """Write a page about a run, or about several."""
    results, question = api.load(paths), Question(unfinished=unfinished)
    for text in unfinished_texts(*comparable(results, question)):
        logger.warning(text)
    if len(results) == 1:
        folder = out or results[0].path
        write_to(folder, partial(report.write_run, results[0], folder, export=True))
    else:
        folder = out or _common_folder(results)
        write_to(folder, partial(report.write_comparison, results, folder, question, export=True))


def check(paths: Sequence[Path], wanted: Sequence[Expectation] | None, *, means: bool, strict: bool) -> bool:
    """Print what runs show of what is expected of them; return whether they show all of it, or might."""
    checks = list(check_runs(api.load(paths), wanted, means=means))
    print_lines(*map(str, checks))
    counts = Counter(each.verdict for each in checks)
    if counts["undecided"]:
        by_seeds = [each.seeds for each in checks if each.verdict == "undecided" and not each.undefined]
        one = "; one seed has no interval: run more, or decide by the value with --means"
        remedy = one if 1 in by_seeds else "; run more seeds" if by_seeds else ""
        say(f"{counts['ok']} ok, {counts['FAILED']} FAILED, {counts['undecided']} undecided{remedy}")
    return not (counts["FAILED"] or (strict and counts["undecided"]))


def _common_folder(results: Sequence[Result]) -> Path:
    return Path(os.path.commonpath([result.folder.path.parent for result in results]))
