"""Tables and references for a paper compile in LaTeX, whatever names are in them."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.config import Config
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.export import as_latex
from fedsim.results.report.comparing.latex import escape_latex, needed_packages
from fedsim.results.report.comparing.pivot import pivot_of
from fedsim.results.report.comparing.pivot_text import pivot_latex
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.pages.citation import bibtex
from fedsim.results.result import Result
from tests.results.report import cases

NAMES = (
    "[fc1 | fc*] ~fc1_2^ 100 % \\end{tabular}\\input{x} a & b $x$ #{} --- `?` \"<'> ^^M",
    "* Modèle_ß Ł Ąą «» λ ≤ β \u00d7 Ω → √∞ ŉϰ \u2212 模型 Модель 😀 ə e\u0304 \u202e\u200b\u00ad\u00a0 \U0001d538",
)
DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs}
\usepackage%s
\begin{document}
\cite{%s}
%s
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


@pytest.fixture
def results(tiny: Callable[..., Config], tmp_path: Path) -> list[Result]:
    """Return runs of FedAvg, Ditto and a method of each name, of two seeds and at hostile values of two settings."""

    def run(strategy: dict[str, str], accuracy: float, seed: int, place: int) -> Result:
        alpha = {"scheme": "dirichlet", "alpha": (0.1, 1.0)[place]}
        config = tiny(strategy=strategy, seed=seed, partition=alpha, model__head=NAMES[place])
        return cases.result(config, [[accuracy + seed / 50, accuracy - seed / 90]], up=[1000], experiment=tmp_path)

    strategies = [{"name": "full"}, {"name": "ditto"}, *({"name": "layer_set", "shared": name} for name in NAMES)]
    return [
        run(strategy, 0.5 + number / 50, seed, place)
        for number, strategy in enumerate(strategies)
        for seed in (0, 1)
        for place in (0, 1)
    ]


def tables(results: list[Result]) -> list[str]:
    """Return every kind of LaTeX table of runs."""
    compared = compare(results)
    both, one = (pivot_of(compared, pivot) for pivot in (["partition.alpha", "model.head"], ["partition.alpha"]))
    none = pivot_of(compare(results[:1]), [])
    return [
        as_latex(comparison_table(compared)),
        *(pivot_latex(both, spread) for spread in ("std", "interval", "none")),
        *(pivot_latex(pivot, marks=False) for pivot in (one, none)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "fonts"), [("pdflatex", "[T1]{fontenc}"), ("xelatex", "{fontspec}"), ("lualatex", "{fontspec}")]
)
def test_tables_and_references_compile_in_two_columns(
    engine: str, fonts: str, results: list[Result], tmp_path: Path
) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"no {engine} on the PATH to compile tables with")
    entries = bibtex(results)
    (tmp_path / "references.bib").write_text(entries)
    keys = ",".join(re.findall(r"@\w+\{([^,]+),", entries))
    latex_tables = tables(results)
    assert all(table.startswith(r"% Needs \usepackage{booktabs} and \usepackage[T1]") for table in latex_tables[:4])
    floats = "\n".join(rf"\begin{{table*}}\tiny{table}\end{{table*}}\clearpage" for table in latex_tables)
    (tmp_path / "paper.tex").write_text(DOCUMENT % (fonts, keys, floats))
    latex = [engine, "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"]
    for command in (latex, ["bibtex", "-terse", "paper"], latex, latex):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-3000:]
        if command[0] == "bibtex":
            assert not done.stdout
    assert "undefined" not in done.stdout


def test_characters_that_latex_lacks_are_code_points_for_it_and_themselves_for_engines_that_have_them() -> None:
    assert escape_latex("50 % λ_1 é") == r"50 \% \ensuremath{\lambda}\_1 \'e"
    assert escape_latex("模型 1") == r"{\ifdefined\Umathchar 模型\else U+6A21 U+578B\fi} 1"
    plain = re.sub(r"\{\\ifdefined\\Umathchar [^\\]+", "", "".join(map(escape_latex, NAMES)))
    assert plain.isascii()
    assert escape_latex("a\u202eb") == "aU+202Eb"


def test_a_table_names_the_packages_that_it_needs() -> None:
    assert needed_packages(escape_latex("Modèle λ")) == r"% Needs \usepackage{booktabs}."
    assert needed_packages(escape_latex("ą")) == r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}."
    chinese = "".join(map(escape_latex, ("模型", "型 1")))
    assert needed_packages(chinese) == r"% Needs \usepackage{booktabs}; in XeLaTeX and LuaLaTeX also a font with 型模."
