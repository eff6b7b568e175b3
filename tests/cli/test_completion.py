"""What a shell offers, in bash, zsh and fish."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.cli import completion
from tests.conftest import Command


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("runs/study/one-s0", "runs/study/two-s0", "runs/other/one-s0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "study.toml").touch()
    (tmp_path / "notes.md").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_of_runs_are_offered_level_by_level(runs: Path) -> None:
    assert completion.run_folders("") == ["runs"]
    assert completion.run_folders("runs/") == ["runs/other", "runs/study"]
    assert completion.run_folders("runs/study/o") == ["runs/study/one-s0"]
    assert completion.run_folders(f"{runs}/runs/s") == [f"{runs}/runs/study"]
    assert completion.run_folders("nowhere/") == []
    assert completion.experiments("e") == ["experiments/"]
    assert completion.experiments("experiments/") == ["experiments/study.toml"]


def test_settings_are_offered_with_the_names_that_they_may_be() -> None:
    assert {"local.lr=", "local.lr_scale="} <= set(completion.settings("local.lr"))
    assert completion.settings("barriers.ev") == ["barriers.every="]
    assert "strategy.name=FedPer" in completion.settings("strategy.name=Fed")
    assert completion.settings("partition.scheme=dir") == ["partition.scheme=dirichlet"]
    assert completion.settings("local.lr=") == []
    assert "FedPer" in completion.strategies("FedP")
    assert completion.metrics("macro") == ["macro-f1"]
    assert completion.models("resnet2") == ["resnet20"]
    assert completion.data("digi") == ["digits"]


@pytest.fixture
def fedsim(runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*words: str, **environment: str) -> str:
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # which is pytest under python -m pytest
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code, out, _ = command(*words)
        assert not code
        return out

    return run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sta"], "status"),
        (["run", "x.toml", "--set", "local.l"], "local.lr="),
        (["run", "x.toml", "--set", "strategy.name=FedP"], "strategy.name=FedPer"),
        (["run", "x.toml", "--engine", "r"], "ray"),
        (["run", "exp"], "experiments/"),
        (["compare", "runs", "--baseline", "FedP"], "FedPer"),
        (["compare", "runs/s"], "runs/study"),
        (["watch", "runs/study/t"], "runs/study/two-s0"),
        (["list", "models", "resnet2"], "resnet20"),
        (["list", "settings", "local.lr_"], "local.lr_scale"),
    ],
)
def test_every_shell_completes_commands_settings_names_and_runs(
    shell: str, words: list[str], offered: str, fedsim: Callable[..., str]
) -> None:
    line = " ".join(("fedsim", *words))
    environment = {"_FEDSIM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    assert offered in fedsim(**environment)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_calls_this_command(
    shell: str, fedsim: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    shown = fedsim("--show-completion")
    assert "_FEDSIM_COMPLETE" in shown
    assert f"complete_{shell}" in shown
