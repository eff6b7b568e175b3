"""What the README and the pages of docs/ show works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from fedsim.cli import commands as cli
from fedsim.config.choices import CATALOGUES
from fedsim.experiment.sweep import sweep
from tests.conftest import Command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
TEXT = "\n".join(PAGES.values())
FILES = {
    match[1]: match[0]
    for block in re.findall(r"```(?:python|toml)\n(.*?)```", TEXT, flags=re.DOTALL)
    if (match := re.match(r"# (\w+\.\w+).*", block, flags=re.DOTALL))
}
# Others that people follow from page to page.
LINKED = PAGES | {
    path: path.read_text()
    for path in (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").glob("*/README.md")))
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        [],
        ['strategy={name="my_strategy:Memory", warmup=3}'],
        ['strategy={name="my_labels:Similar"}', "engine.cohort=4"],
        ['strategy={name="my_flower:Median", shared="body"}'],
        ['partition={scheme="my_partition:sorted_cuts"}'],
        ['features={skew="my_skew:darker"}'],
        ['model={name="my_model:linear"}', 'strategy.shared="head"'],
        ['data={name="my_data:stripes"}', "barriers.examples=160"],
        ['data={name="my_pair:shapes"}', "barriers.examples=40"],
    ],
)
def test_its_experiment_runs_with_each_of_its_own_parts(
    changes: list[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    assert len(FILES) == 11
    if changes:  # the pages of the experiment itself are drawn
        request.getfixturevalue("plain_pages")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    few = ["rounds=4"] if changes else []  # of ten, in which each part is used as well
    arguments = [argument for change in changes + few for argument in ("--set", change)]
    monkeypatch.setattr(sweep, "processors", lambda: 1)  # another process would import all again
    assert command("run", "my_experiment.toml", *arguments)[0] == 0
    assert len(list(tmp_path.glob("runs/my_experiment/*/DONE"))) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_its_python_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    block = re.search(r"```python\n(import fedsim\n.*?)```", PAGES[ROOT / page], flags=re.DOTALL)
    assert block
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "processors", lambda: 1)  # another process would import all again
    exec(compile(block[1], page, "exec"), {})
    assert len(list(tmp_path.glob("runs/quickstart/*/DONE"))) == 4


def test_the_readme_takes_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_a_method_of_your_own_takes_at_most_30_lines() -> None:
    assert len(FILES["my_strategy.py"].splitlines()) <= 30


def test_they_name_everything_that_can_be_chosen() -> None:
    for catalogue in CATALOGUES.values():
        for name in catalogue.entries:
            assert f"`{name}`" in TEXT, name


def test_their_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_their_command_lines_are_understood() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^(?:FEDSIM_DATA=\S+ )?fedsim (.*)$", "\n".join(LINKED.values()), flags=re.MULTILINE)
    quoted = re.findall(r"`(?:FEDSIM_DATA=\S+ )?fedsim ([a-z]+ [^`]*)`", "\n".join(LINKED.values()))
    assert len(lines) > 10
    for line in lines + quoted:
        name, *arguments = shlex.split(line, comments=True)
        options = {option for each in commands[name].params for option in each.opts} | {"--help"}
        for argument in arguments:
            assert not argument.startswith("--") or argument.partition("=")[0] in options, line


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors_are_those_of_github() -> None:
    assert anchors("# A row of `barriers/`\n```\n# no heading\n```\n## One round, exactly\n") == {
        "a-row-of-barriers",
        "one-round-exactly",
    }


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", LINKED[page]):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_all_files_that_the_pages_name_exist() -> None:
    for name in re.findall(r"`([\w/]+/\w+\.py)`", TEXT):
        assert (ROOT / name).exists() or (ROOT / "fedsim" / name).exists(), name


def test_each_page_is_linked_from_the_first_one() -> None:
    docs = ROOT / "docs"
    first = PAGES[docs / "index.md"]
    for page in (*docs.rglob("*.md"), *docs.rglob("*.ipynb")):
        name = page.relative_to(docs).as_posix()
        assert name == "index.md" or re.search(rf"\({re.escape(name)}(#[^)]*)?\)", first), name
