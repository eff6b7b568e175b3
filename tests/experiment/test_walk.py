"""``fedsim path`` between two checkpoints, against models mixed by hand."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from fedsim.cli import commands as cli
from fedsim.errors import ConfigError
from fedsim.experiment.saved_models.comparison import comparison_config
from fedsim.experiment.saved_models.walk import walk_between
from fedsim.federation.federation import federation_of
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params
from fedsim.training.evaluation import evaluate

Fedsim = Callable[..., tuple[int, str, str]]
SMALL = {("model", "hidden"): [4]}


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(MODELS["mlp"]((1, 8, 8), 10, hidden=(4,)).state_dict(), tmp_path / f"{seed}.pt")
    return tmp_path / "0.pt", tmp_path / "1.pt"


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fedsim:
    """Walk in an empty folder; return the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        options = ["--model", "mlp", "--set", "model.hidden=[4]", "--data", "digits"]
        monkeypatch.setattr("sys.argv", ["fedsim", "path", *arguments, *options])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (exit_.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


def test_without_training_layers_are_swapped_and_the_line_is_the_interpolation(ends: tuple[Path, Path]) -> None:
    config = comparison_config("mlp", "digits", SMALL)
    walk = walk_between(
        ends, config, order=["fc2", "fc1"], step=math.inf, train_steps=0, keeps_variance=False, examples=None
    )
    a, b = (torch.load(path) for path in ends)
    inputs, targets = federation_of(config, fit="all").data.test()

    def loss(state: Params) -> float:
        model = MODELS["mlp"]((1, 8, 8), 10, hidden=(4,))
        model.load_state_dict(state)
        return evaluate(model, inputs, targets).loss

    walked = walk.rows.query("curve == 'layer-wise'")
    half = a | {key: b[key] for key in ("fc2.weight", "fc2.bias")}
    assert walked["loss"].tolist() == pytest.approx([loss(a), loss(half), loss(b)], rel=1e-6)
    assert walked["arrived"].tolist() == [0, 1, 2]
    left = [math.sqrt(sum(float((s[k] - b[k]).double().square().sum()) for k in a)) for s in (a, half, b)]
    assert walked["share"].tolist() == pytest.approx([1 - each / left[0] for each in left])
    line = walk.rows.query("curve == 'linear'")
    mixed = [{key: (1 - t) * a[key] + t * b[key] for key in a} for t in line["share"]]
    assert line["loss"].tolist() == pytest.approx([loss(each) for each in mixed], rel=1e-5)
    assert len(line) == 11


@pytest.mark.slow
def test_the_command_trains_on_the_way_and_writes_what_it_prints(ends: tuple[Path, Path], fedsim: Fedsim) -> None:
    losses = []
    for steps in ("0", "5"):
        arguments = ("--step", "1", "--train-steps", steps, "--lr", "0.1", "--every", "1")
        code, out, err = fedsim(*map(str, ends), *arguments)
        assert code == 0
        assert "stopped" not in err
        rows = pd.read_csv("path/path.csv")
        walk = rows.query("curve == 'layer-wise'")
        highest = re.search(r"walk, highest +([\d.]+) +([\d.]+)", out)
        assert highest is not None
        assert float(highest[1]) == pytest.approx(walk["loss"].max(), rel=1e-3)
        assert float(highest[2]) == pytest.approx(100 * walk["error"].max(), rel=1e-3)
        losses.append(walk["loss"].iloc[1:-1].mean())
    assert losses[1] < losses[0]
    written = {file.name for file in Path("path").iterdir()}
    figures = {f"path-{metric}.{kind}" for metric in ("loss", "error") for kind in ("pdf", "png")}
    assert written == {"report.html", "path.csv", *figures}


@pytest.mark.slow
def test_a_walk_that_stops_before_the_end_says_so(ends: tuple[Path, Path], fedsim: Fedsim) -> None:
    code, _, err = fedsim(*map(str, ends), "--train-steps", "0", "--max-steps", "3")
    assert code == 0
    assert "the walk stopped after 3 steps, before the end; raise --max-steps or --step\n" in err
    assert "The walk stopped after 3 layer steps, before the end." in Path("path/report.html").read_text()
    assert pd.read_csv("path/path.csv")["steps"].max() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "--step 0 with --share 0 never moves; give one of them a positive number"),
        (["--lr", "nan"], "--lr nan must be at least 0"),
        (["--train-steps", "-1"], "--train-steps.*: -1 is not in the range x>=0"),
        (["--layer", "fc1"], "--layer fc1: give each layer once: fc1, fc2"),
        (["--layer", "fc1", "--layer", "fc1"], "--layer fc1 --layer fc1: give each layer once: fc1, fc2"),
        (["--examples", "9999"], "--examples 9999: 'digits' has 355 test examples"),
        (["--set", "rounds=2"], "--set rounds has no effect without a run"),
    ],
)
def test_a_wrong_argument_is_one_line_and_nothing_is_written(
    ends: tuple[Path, Path], fedsim: Fedsim, arguments: list[str], message: str
) -> None:
    code, out, err = fedsim(*map(str, ends), *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert not Path("path").exists()


def test_a_model_has_no_path_to_itself(ends: tuple[Path, Path]) -> None:
    config = comparison_config("mlp", "digits", SMALL)
    with pytest.raises(ConfigError, match=r"hold equal models; give two that differ$"):
        walk_between((ends[0], ends[0]), config)
