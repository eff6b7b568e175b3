"""Names of classes, layers, strategies and files are text in every figure, table, page and file."""

import base64
import csv
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.report.comparing.export import as_csv, as_latex, as_markdown
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.heat_maps import HeatMaps, Quantity
from fedsim.results.report.drawing.layer_curves import LayerCurves, LayerPanel
from fedsim.results.report.drawing.partition import partition
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples
from fedsim.results.report.drawing.style import STYLE, draw_line, legend_outside, log_scale, save
from tests.conftest import Command
from tests.test_console import HOSTILE

SHOWN = HOSTILE | {
    name: name for name in ("$\\frac$", "\\$x$", "$", "_u_^", "<b>&\"'</b>", "=1+1", "-2+3", "@a", "%", "{x}")
}
NAMES = [name for name in SHOWN if name != "\udcff"]  # which neither TOML nor pandas can hold
FEW = ["[f]c1", "[f]c2", "\x1b[31mred", "$\\frac$", "_u_^", "<b>&\"'</b>", "a\nb\rc\td", "=1+1"]
MINE = f"""
import torch
from torch import nn
from fedsim import Dataset, Examples, Strategy
from fedsim.strategy import Option
NAMES = {FEW!r}

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(classes, classes))
    def forward(self, x):
        for name in NAMES:
            x = self.get_submodule(name)(x)
        return x

def load():
    targets = torch.arange(10 * len(NAMES)) % len(NAMES)
    examples = Examples(torch.eye(len(NAMES))[targets], targets)
    return Dataset(NAMES[0], examples, examples, tuple(NAMES))

class Own(Strategy, shared="all"):
    note: str = Option("", "Text.")
"""


def figure_with_a_legend() -> Figure:
    with rc_context(STYLE):
        figure = Figure()
        axes = figure.subplots()
        for number, name in enumerate(NAMES):
            draw_line(axes, pd.Series([1.0, number]), name, number)
        legend_outside(figure, axes)
        return figure


def figures() -> dict[str, Callable[[], Figure]]:
    points = pd.DataFrame({"value": [1.0, 2.0], "low": 1.0, "high": 2.0})
    by_layer = pd.DataFrame({"value": 1.0, "low": 1.0, "high": 2.0}, index=NAMES)
    counts = {"classes": NAMES, "sizes": [len(NAMES)] * 2, "label_counts": [{str(i): 1 for i in range(len(NAMES))}] * 2}
    table = pd.DataFrame(1.0, index=NAMES, columns=["x"])
    return {
        "legend": figure_with_a_legend,
        "heat maps": HeatMaps(dict.fromkeys(FEW, table[:1]) | {"x": table}, Quantity("x"), across=5).figure,
        "small multiples": SmallMultiples({name: [Curve(name, points, 0)] for name in FEW}, "x", "y").figure,
        "curves over layers": LayerCurves([LayerPanel("x", [Curve("y", by_layer, 0)])]).figure,
        "partition": lambda: partition(Heterogeneity.from_json(counts), "$\\frac$"),
    }


def texts_of(svg: bytes) -> set[str]:
    """Return the texts of a figure, each of which is a comment next to the outlines of its letters."""
    comments = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.fromstring(svg, comments)
    return {html.unescape(each.text or "").strip() for each in root.iter(ElementTree.Comment)}


@pytest.mark.parametrize("name", figures())
def test_a_figure_shows_names_as_they_are_written(name: str) -> None:
    figure = figures()[name]()
    missing = {SHOWN[name] for name in (FEW if name == "small multiples" else NAMES)} - texts_of(save(figure, "svg"))
    assert not missing
    assert save(figure, "pdf").startswith(b"%PDF")


def test_ticks_of_logarithmic_axes_are_powers_of_ten() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1e-4, 1e4], [0.3, 70])
    log_scale(axes, "x")
    log_scale(axes, "y")
    texts = texts_of(save(figure, "svg"))
    assert {"10\u207b\u00b2", "10\u2074", "1", "10"} <= texts
    axes.set_xlim(2e-5, 6e-5)
    assert "3\u00d710\u207b\u2075" in texts_of(save(figure, "svg"))


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *((f"{start}1+1", f"'{start}1+1") for start in ("=", "+", "-", "@", " =", "\uff1d", "\uff20")),
        ("\t=1", "'\\t=1"),
        ("\r1", "'\\r1"),
        ("-inf", "'-inf"),
        *((number, number) for number in ("-1.5", "+2", "-1e-05", "-.5", "0.25", "")),
        ("a=b", "a=b"),
        ("a\nb", "a\\nb"),
    ],
)
def test_a_text_that_a_spreadsheet_would_compute_has_an_apostrophe(
    cell: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.results.report.comparing.export.values_of", lambda *_: [[cell, "x"]])
    assert list(csv.reader(io.StringIO(as_csv(None, ())))) == [[written, "x"]]  # type: ignore[arg-type]


def test_notes_of_a_table_stay_notes() -> None:
    table = Table(("h",), (False,), (("x",),), ("a\n\\input{y} [b](c) $\\frac$ <i>",))
    assert r"% a\n\input{y}" in as_latex(table)
    assert as_markdown(table).endswith("\na\\\\n\\\\input{y} \\[b\\](c) \\$\\\\frac\\$ \\<i>\n")


class Page(HTMLParser):
    """Collects the tags, the texts and the figures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.figures: list[bytes] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags[tag] += 1
        if tag == "img":
            assert [name for name, _ in attributes] == ["src", "alt"]
            self.figures.append(base64.b64decode(dict(attributes)["src"].partition("base64,")[2]))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def strings_in(part: Any) -> set[str]:
    """Return all strings in the data of a page, such as the names that its charts show."""
    if isinstance(part, dict | list):
        return {text for each in (part.values() if isinstance(part, dict) else part) for text in strings_in(each)}
    return {part} if isinstance(part, str) else set()


@pytest.mark.slow
def test_names_are_text_from_the_run_to_its_page(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x[" / "x]$\\frac$"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("_hostile.py").write_text(MINE)
    settings = {
        "rounds": 1,
        "clients": 2,
        "data": {"name": "_hostile:load"},
        "partition": {"scheme": "iid"},
        "model": {"name": "_hostile:Net"},
        "strategy": {"name": "_hostile:Own", "note": "".join(FEW)},
        "barriers": {"every": 1, "groups": ["layers"], "examples": 20},
    }
    Path("[i]$x$.toml").write_text(tomli_w.dumps(settings))
    run = "runs/[i]$x$"

    def fedsim(*arguments: str) -> str:
        code, out, err = command(*arguments)
        assert code == 0, err
        assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]*", out + err)
        return out + err

    shown_names = [SHOWN[name] for name in FEW]
    shown = fedsim("run", "[i]$x$.toml", "--dry-run")
    assert all(re.search(rf"^{re.escape(name)} ", shown, re.MULTILINE) for name in shown_names)
    assert f"runs: {run}" in fedsim("run", "[i]$x$.toml", "--jobs", "1")
    label = f"_hostile:Own(note={''.join(shown_names)})"
    assert label in fedsim("compare", run, "--csv", "c.csv")
    fedsim("report", str(min(Path(run).glob("*-s0"))))
    pages = [Page(path.read_text()) for path in [Path(run, "report.html"), *Path(run).glob("*-s0/report.html")]]
    assert len(pages) == 2
    for page in pages:
        assert not page.tags["b"] + page.tags["i"]
        assert page.tags["script"] == 3  # the data, Vega, and the page's own
        assert set(shown_names) <= strings_in(json.loads(next(text for text in page.texts if '"datasets"' in text)))
    assert any(label in "".join(page.texts) for page in pages)
    assert all(path.read_bytes().startswith(b"%PDF") for path in Path(run).glob("*/*.pdf"))
