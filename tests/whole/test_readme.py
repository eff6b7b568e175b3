"""What the README shows works as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from fedsim.cli import commands as cli
from fedsim.config.choices import CATALOGUES

README = (Path(__file__).parents[2] / "README.md").read_text()
FILES = {
    match[1]: match[0]
    for block in re.findall(r"```(?:python|toml)\n(.*?)```", README, flags=re.DOTALL)
    if (match := re.match(r"# (\w+\.\w+).*", block, flags=re.DOTALL))
}


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ['strategy={name="my_strategy:Memory", warmup=3}'],
        ['partition={scheme="my_partition:sorted_cuts"}'],
        ['features={skew="my_skew:darker"}'],
        ['model={name="my_model:linear"}', 'strategy.shared="head"'],
        ['data={name="my_data:stripes"}', "barriers.examples=160"],
    ],
)
def test_its_experiment_runs_with_each_of_its_own_parts(
    changes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert len(FILES) == 6
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = [argument for change in changes for argument in ("--set", change)]
    monkeypatch.setattr(sys, "argv", ["fedsim", "run", "my_experiment.toml", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert len(list(tmp_path.glob("runs/my_experiment/*/DONE"))) == 2


def test_a_strategy_of_ones_own_takes_at_most_40_lines() -> None:
    assert len(FILES["my_strategy.py"].splitlines()) <= 40


def test_it_names_everything_that_can_be_chosen() -> None:
    for catalogue in CATALOGUES.values():
        for name in catalogue.entries:
            assert f"`{name}`" in README, name


def test_its_commands_and_files_exist() -> None:
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (root / target).exists(), target
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
