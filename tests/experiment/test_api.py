"""The door for Python: what `fedsim.run` and its neighbours return, in scripts and notebooks too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import fedsim
from fedsim.config import Config, choices
from fedsim.federation.federation import federation_of
from fedsim.results import report
from fedsim.training.evaluation import evaluate
from tests.conftest import TINY, Command, plain_page

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_pages")]
HEAD = {"strategy": {"name": "layer_set", "shared": "head"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Runs:
    """Return the runs of two seeds."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(report, "write_run", plain_page)
        return fedsim.run(TINY | HEAD, {"sweep.seed": [3, 4]}, out=str(out), name="heads", jobs=1)


def test_a_run_returns_its_records_and_says_what_came_out(runs: fedsim.Runs) -> None:
    assert len(runs) == 2
    assert [run.config.seed for run in runs] == [3, 4]
    assert len(runs[:1]) == 1
    first = runs[0]
    assert first.path.parent.name == "heads"
    tables = (first.metrics, first.communication, first.timing, first.barriers, first.distances, first.participants)
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in tables)
    assert list(first.faults.columns) == ["round", "client", "stage", "reason", "restored_from", "kind"]
    assert first.participants.groupby("round")["client"].count().tolist() == [4, 4]
    accuracy = f"{first.by_client('personalised').mean():.1%}"
    assert f"seed 3, digits, 4 clients: personalised accuracy {accuracy} after round 2 of 2" in repr(first)
    assert len(repr(runs).splitlines()) == 3
    assert "<table" in runs._repr_html_()
    assert "<table" in first._repr_html_()
    assert first.cka.empty  # it was not measured
    with pytest.raises(AttributeError, match="a run has no 'loss'; tables of its analysis are: distances"):
        _ = first.loss


@pytest.mark.parametrize("client", [None, 0, 3])
def test_a_model_has_the_accuracy_that_was_measured(runs: fedsim.Runs, client: int | None) -> None:
    run = runs[1]
    model, data = run.model(client), federation_of(run.config).data
    assert not model.training
    examples = data.test() if client is None else data.client(client).test
    measured = run.on_server("global").loc[2] if client is None else run.by_client("personalised").loc[client]
    assert evaluate(model, *examples).accuracy == pytest.approx(measured)


def test_a_client_that_is_not_there_has_no_model(runs: fedsim.Runs) -> None:
    with pytest.raises(fedsim.ConfigError, match="client = 4 must be from 0 to 3"):
        runs[0].model(client=4)


def test_the_model_of_a_method_that_personalises_is_the_one_that_it_evaluates(tmp_path: Path) -> None:
    [run] = fedsim.run(TINY, {"strategy": {"name": "ditto"}, "barriers.every": 0}, out=tmp_path)
    model, data = run.model(client=1), federation_of(run.config).data
    assert evaluate(model, *data.client(1).test).loss == pytest.approx(
        run.by_client("personalised", "loss").loc[1], rel=1e-6
    )


def test_runs_are_read_again_from_texts_and_paths(runs: fedsim.Runs) -> None:
    folder = runs[0].path.parent
    for paths in (str(folder), folder, [run.path for run in runs], [str(run.path) for run in runs]):
        read = fedsim.load(paths)
        assert [run.path for run in read] == [run.path for run in runs] == [run.path for run in runs[:1] + runs[1:]]
        pd.testing.assert_frame_equal(read[0].metrics, runs[0].metrics)


def test_a_comparison_is_a_table_of_numbers_and_of_text(runs: fedsim.Runs) -> None:
    compared = fedsim.compare(runs, metric="accuracy", at="last")
    means = [run.by_client("personalised").mean() for run in runs]
    assert compared.table["personalised"].tolist() == [pytest.approx(sum(means) / 2, rel=1e-15)]
    assert f"{50 * sum(means):.1f}" in repr(compared)
    assert "<table" in compared._repr_html_()
    assert "validation" in compared.csv.partition("\n")[0].split(",")
    assert "validation" in compared.table
    assert "validation" not in compared.text.headings
    assert "validation" not in fedsim.compare(runs, columns="personalised").table
    assert len(fedsim.compare([str(run.path) for run in runs], by="seed").table) == 2
    with pytest.raises(fedsim.ConfigError, match="no runs"):
        fedsim.compare([])


def test_a_table_of_a_paper_is_that_of_the_command_line(runs: fedsim.Runs, command: Command) -> None:
    found = fedsim.table(runs, column="std", spread="interval")
    means = [run.by_client("personalised").std(ddof=0) for run in runs]
    assert found.table["mean"].tolist() == [pytest.approx(sum(means) / 2, rel=1e-15)]
    assert (found.table["seeds"].tolist(), found.table["best"].tolist()) == ([2], [False])
    options = ("--column", "std", "--spread", "interval")
    for kind, text in (("--latex", found.latex), ("--markdown", found.markdown), ("--csv", found.csv)):
        assert command("table", runs[0].path.parent, *options, kind)[1].strip() == text.strip()
    assert "<table" in found._repr_html_()
    with pytest.raises(fedsim.ConfigError, match="--spread 'all' must be one of std, interval, none"):
        fedsim.table(runs, spread="all")  # type: ignore[arg-type]


def test_each_round_is_told_and_a_second_call_repeats_none(tmp_path: Path) -> None:
    rounds: list[fedsim.Round] = []
    settings = {"barriers.every": 0}
    [first] = fedsim.run(TINY, settings, out=tmp_path, on_round=rounds.append)
    assert [each.round for each in rounds] == [1, 2]
    assert rounds[1].personalised_accuracy == pytest.approx(first.by_client("personalised").mean())
    [again] = fedsim.run(TINY, settings, out=tmp_path, on_round=rounds.append)
    assert len(rounds) == 2
    assert again.path == first.path == tmp_path / "experiment" / first.path.name
    assert again.path.name.endswith("-s0")


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ("nowhere.toml", {}, "nowhere.toml cannot be read"),
        (TINY, {"local.learning_rate": 1}, "unknown key 'local.learning_rate'"),
        (TINY, {"strategy.name": "nothing"}, "strategy.name = 'nothing' is unknown"),
        (TINY, {"not a key": 1}, "'not a key' is not a setting"),
        (TINY, {"rounds.of": 1}, "'rounds.of' cannot be set"),
    ],
)
def test_a_mistake_is_an_error_and_nothing_is_written(
    settings: Any, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for call in (lambda: fedsim.run(settings, overrides, out=tmp_path), lambda: fedsim.partition(settings, overrides)):
        with pytest.raises(fedsim.ConfigError, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_a_partition_shows_who_holds_what() -> None:
    shared = fedsim.partition(TINY)
    counts = shared.label_counts
    assert counts.shape == (4, 10)
    assert counts.sum(axis=1).tolist() == shared.data.split.whole.sizes.tolist()
    labels = shared.data.dataset.labels[shared.data.split.whole[2]]
    assert counts.loc[2].tolist() == [(labels == label).sum() for label in range(10)]
    assert shared.heterogeneity.loc[2, "examples"] == len(labels)
    assert "total variation" in repr(shared)
    assert "<table" in shared._repr_html_()
    with pytest.raises(fedsim.ConfigError, match="2 partitions; choose one with overrides"):
        fedsim.partition(TINY, {"sweep.seed": [0, 1]})


def test_barriers_take_states_that_files_may_hold() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    states = [{key: value + i for key, value in model.state_dict().items()} for i in (0, 1)]
    inputs, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    table = fedsim.barriers(model, states, inputs, targets)
    arrays = [{key: value.numpy() for key, value in state.items()} for state in states]
    older = [{key: value for key, value in state.items() if "num_batches" not in key} for state in states]
    for given in (arrays, older):
        pd.testing.assert_frame_equal(fedsim.barriers(model, given, inputs, targets), table)
    with pytest.raises(fedsim.ConfigError, match=r"it lacks '2\.bias'"):
        fedsim.barriers(model, [states[0], {k: v for k, v in states[1].items() if k != "2.bias"}], inputs, targets)


def test_barriers_take_states_and_paths_of_checkpoints(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    states = [{key: torch.randn(v.shape, generator=generator) for key, v in model.state_dict().items()} for _ in "ab"]
    for name, state in zip("ab", states, strict=True):
        save_file(state, tmp_path / f"{name}.safetensors")
    inputs, targets = torch.randn(20, 3, generator=generator), torch.arange(20) % 2
    table = fedsim.barriers(model, states, inputs, targets)
    pd.testing.assert_frame_equal(table, fedsim.analysis.barriers(model, states, inputs, targets))
    paths = [str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"]
    pd.testing.assert_frame_equal(fedsim.barriers(model, paths, inputs, targets), table)


@pytest.mark.parametrize("moved", [False, True])
def test_a_method_changed_between_two_runs_is_run_as_it_is_now(
    moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = """
from fedsim import Strategy

class Mine(Strategy):
    def shared(self, server_round):
        return self.layers.group("{}")
"""
    for group in ("body", "head"):
        folder = tmp_path / group if moved else tmp_path
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        Path("changing_method.py").write_text(source.format(group))
        settings = {"strategy": {"name": "changing_method:Mine"}, "barriers.every": 0, "rounds": 1}
        [run] = fedsim.run(TINY, settings, out="runs")
        plain = choices.resolve(
            Config.parse(TINY | {"rounds": 1, "strategy": HEAD["strategy"] | {"shared": group}}, "")
        )
        layers = federation_of(plain).layers
        assert set(run.communication["layer"]) == set(layers.group(group))


SCRIPT = """
import fedsim

print("begin")
settings = {settings!r}
own = {{"sweep.seed": [0, 1], "rounds": 1, "barriers.every": 0, "strategy": {{"name": "my_method:Mine"}}}}
runs = fedsim.run(settings, own, jobs=2)
more = fedsim.run(settings, own | {{"rounds": 2}}, jobs=2)
print(len(runs), len(more), more[0].config.rounds)
"""
FOREIGN = ("strategies", "options", "errors", "lazy", "data", "models", "fedsim_x")


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once_among_files_with_our_names(tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this file is not fedsim\\'s')\n")
    (tmp_path / "partitions").mkdir()
    (tmp_path / "partitions" / "__init__.py").write_text("raise RuntimeError('this package is not fedsim\\'s')\n")
    (tmp_path / "my_method.py").write_text("from fedsim import Strategy\nclass Mine(Strategy):\n    'Mine.'\n")
    (tmp_path / "script.py").write_text(SCRIPT.format(settings=TINY))
    root = str(Path(fedsim.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    for command in (["script.py"], ["-m", "fedsim", "list", "partitions"], ["-c", "import fedsim; fedsim.run"]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        if command == ["script.py"]:
            assert done.stdout == "begin\n2 2 2\n"


@pytest.mark.ray
def test_runs_on_ray_can_be_repeated_in_one_process(tmp_path: Path) -> None:
    for rounds in (1, 2):
        [run] = fedsim.run(TINY, {"rounds": rounds, "barriers.every": 0}, engine="ray", out=tmp_path)
        assert run.evaluated == rounds
