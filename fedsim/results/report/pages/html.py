"""A page as one HTML file that asks for no other: texts, tables, charts, and the script that draws them."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from altair.utils.schemapi import debug_mode
from markupsafe import Markup

from fedsim.results.files import write_whole
from fedsim.results.report.charts.embedded import as_printable, embedded
from fedsim.results.report.charts.theme import config
from fedsim.results.report.drawing.style import save
from fedsim.results.report.pages.section import Section
from fedsim.results.report.pages.vega import vega_script
from fedsim.shortening import printable

PAGE = "report.html"
# Altair compares each part of a chart with its schema as it is made: a fifth of a page's time, and left to tests.
unchecked = debug_mode(False)
# Where a new paragraph of "how to read this" begins.
LEADS = re.compile(r" (?=(?:How it is computed|Good|Bad|Pitfalls): )")


def write_page(
    out: Path, content: Mapping[str, Any], sections: Sequence[Section], data: Mapping[str, Any], *, export: bool
) -> Path:
    """Write the page into the folder ``out``, and, if asked for, its figures as PDF and PNG; return its path.

    Parameters
    ----------
    content
        What the template shows, besides the sections.
    data
        What the script reads, besides the charts.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsim.results.report.pages", "."),
        autoescape=True,
        trim_blocks=True,
        finalize=lambda value: printable(value, lines=True) if type(value) is str else value,
    )
    charts = embedded({section.name: section.chart for section in sections if section.chart is not None})
    scripts, style = [vega_script(), _part("page.js")], _part("page.css")
    page = out / PAGE
    text = environment.get_template("page.html").render(
        **content,
        sections=[_shown(section, export) for section in sections],
        style=Markup(style),
        style_hash=_hash(style),
        scripts=[_script(script) for script in scripts],
        script_hashes=" ".join(map(_hash, scripts)),
        data=_json({**charts, "config": config(), **data}),
    )
    write_whole(page, text)
    if export:
        for section in sections:
            for name, draw in section.figures.items():
                figure = draw()
                for file in _files(name):
                    write_whole(out / file, save(figure, file.rpartition(".")[2]))
    return page


def _shown(section: Section, export: bool) -> dict[str, Any]:
    return {
        "name": section.name,
        "title": section.title,
        "findings": section.findings,
        "text": section.text,
        "how_to_read": LEADS.split(section.how_to_read),
        "has_chart": section.chart is not None,
        "files": [file for name in section.figures for file in _files(name)] if export else [],
    }


def _files(name: str) -> list[str]:
    name = re.sub(r"[^\w-]+", "-", name)  # which has what a table names, and must stay in the folder
    return [f"{name}.{kind}" for kind in ("pdf", "png")]


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> Markup:
    """Return how a content security policy allows exactly this text."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")


def _script(text: str) -> Markup:
    assert "</script" not in text.lower()
    return Markup(text)


def _json(data: Mapping[str, Any]) -> Markup:
    """Return JSON that no text in it can end early, and without a letter that no file can have."""
    text = json.dumps(as_printable(data), separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
