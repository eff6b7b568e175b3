"""How runs differ: their settings as a diff, their pages, and the commands that give them again."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsim.results.differences import distinguishing_settings
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.tables import UNKNOWN, Table
from fedsim.results.result import Result


def runs_table(results: Sequence[Result], out: Path) -> dict[str, Any]:
    """Return a table with a line per run: its page as a link, and the settings in which runs differ."""
    settings = distinguishing_settings(results)  # besides those that the strategy's label has
    shown = list(settings[0])
    rows = tuple(
        (
            result.folder.path.name,
            result.strategy,
            str(result.config.seed),
            str(result.evaluated),
            *(str(each[key]) for key in shown),
        )
        for result, each in zip(results, settings, strict=True)
    )
    headings = ("run", "strategy", "seed", "rounds", *shown)
    table = Table(headings, (False, False, True, True, *[False] * len(shown)), rows)
    return {
        "title": "Runs, and the settings in which they differ",
        "table": table,
        "links": [_link(result, out) for result in results],
    }


def shared_settings(results: Sequence[Result]) -> str:
    """Return the settings that all runs have in common, a line each."""
    settings = [result.shown_settings for result in results]
    same = {
        key: settings[0][key] for key in settings[0] if len({str(each.get(key, UNKNOWN)) for each in settings}) == 1
    }
    return "\n".join(f"{key} = {value!r}" for key, value in same.items())


def changed_settings(result: Result) -> str:
    """Return the settings of a run that differ from their defaults, a line each."""
    return "\n".join(f"{key} = {value!r}" for key, value in result.changed_settings.items())


def comparing_command(results: Sequence[Result], question: Question) -> str:
    """Return the command that compares these runs again."""
    words = ["fedsim", "compare", *compared_paths(results)]
    for each in fields(question):
        value = getattr(question, each.name)
        if each.name == "budgets":
            words += [word for what, amount in value.items() for word in ("--budget", _budget(what, amount))]
        elif value != each.default:
            words += [f"--{each.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return _line(words)


def running_command(result: Result) -> str:
    """Return the command that runs this again."""
    return _line(["fedsim", "run", str(result.folder.config)])


def _budget(what: str, amount: float | None) -> str:
    return what if amount is None else f"{what}={amount:.17g}"


def _line(words: Sequence[str]) -> str:
    # A path could begin with a dash; what a shell reads as one word is quoted.
    return shlex.join(words)


def compared_paths(results: Sequence[Result]) -> list[str]:
    """Return the folders of the runs, or of the experiments of which all runs are compared."""
    paths: list[str] = []
    compared = {result.folder.path.resolve() for result in results}
    for parent in dict.fromkeys(result.folder.path.parent for result in results):
        inside = {config.parent.resolve() for config in parent.glob("*/config.toml")}
        own = [result.folder.path for result in results if result.folder.path.parent == parent]
        paths += map(_path, [parent] if inside and inside <= compared else own)
    return paths


def _path(path: Path) -> str:
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _link(result: Result, out: Path) -> str:
    """Return the address of a run's page relative to a page in the folder ``out``; empty if it has none."""
    page = result.folder.report
    return quote(os.path.relpath(page.resolve(), out.resolve())) if page.is_file() else ""
