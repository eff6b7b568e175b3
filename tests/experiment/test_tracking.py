import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fedsim
from fedsim.config import Config
from fedsim.config.track import TrackConfig
from fedsim.experiment.finished import FinishedRun
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.experiment.tracking import feed
from fedsim.experiment.tracking.callback import ActiveRun, callback_of
from fedsim.experiment.tracking.feed import Feed, catch_up
from fedsim.experiment.tracking.tracker import Sent
from fedsim.experiment.tracking.values import GrowingRecords, name_from
from fedsim.results import report
from fedsim.results.files import keep_rounds
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from tests.conftest import plain_page

ACCURACY = "personalised/test/accuracy/mean"
TINY: dict[str, Any] = {
    "rounds": 3,
    "clients": 3,
    "data": {"name": "digits", "train_examples": 150, "test_examples": 60},
    "partition": {"scheme": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [8]},
    "barriers": {"every": 2, "examples": 30, "measures": []},
    "engine": {"workers": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run three rounds without any tracker."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(report, "write_run", plain_page)
        return RunFolder(fedsim.run(TINY, out=out, jobs=1, name="study")[0].path)


@pytest.fixture
def folder(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """Copy the run, so that trackers can write next to it."""
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "study" / finished.path.name)))


def active(folder: RunFolder, **track: Any) -> ActiveRun:
    """Return the run as it would be with trackers."""
    config = read_result(folder).config.model_copy(update={"track": TrackConfig(**track)})
    return ActiveRun("FedAvg seed 0", "study", folder.path, config)


def stopped_and_resumed(folder: RunFolder, **track: Any) -> None:
    """Feed trackers with two rounds, as in a run that was stopped, and then with all three."""
    complete, run = folder.metrics.read_bytes(), active(folder, **track)
    for path in (folder.metrics, folder.communication, folder.timing):
        keep_rounds(path, 2)
    first = Feed(run)
    first.send()
    first.close()
    for path in (folder.metrics, folder.communication, folder.timing):
        shutil.copyfile(folder.path.parent / "whole" / path.name, path)
    assert folder.metrics.read_bytes() == complete
    assert catch_up(run, lambda: FinishedRun.from_result(read_result(folder)))
    assert not catch_up(run, lambda: FinishedRun.from_result(read_result(folder)))


@pytest.fixture
def recorded(folder: RunFolder) -> dict[int, float]:
    """Return the clients' mean test accuracy by round, from the records; keep a copy of these."""
    shutil.copytree(folder.path, folder.path.parent / "whole")
    rows = pd.read_json(folder.metrics, lines=True)
    chosen = rows[(rows.model == "personalised") & (rows.split == "test") & (rows.metric == "accuracy")]
    return {int(key): float(value) for key, value in chosen.groupby("round")["value"].mean().items()}


def test_values_are_the_records_under_names_of_their_fields(folder: RunFolder, recorded: dict[int, float]) -> None:
    values = GrowingRecords(folder).new()
    assert {server_round: values[server_round][ACCURACY] for server_round in values} == pytest.approx(recorded)
    sent = pd.read_json(folder.communication, lines=True).groupby("round")["up"].sum()
    assert [values[each]["communication/model/up"] for each in (1, 2, 3)] == list(sent)
    table = pd.read_parquet(folder.measured("barriers", 2))
    of_full = table[(table.group == "full") & (table.other == -1) & (table.data == "clients")]
    name = "barriers/clients/full/loss_mean_ends/mean"
    assert values[2][name] == pytest.approx(of_full.loss_mean_ends.mean())
    assert name not in values[1]


def test_a_mean_over_clients_is_a_gap_where_a_value_is_missing(folder: RunFolder) -> None:
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    first = next(row for row in rows if row["model"] == "personalised" and row["split"] == "test")
    first["value"] = None
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values, name = GrowingRecords(folder).new(), f"personalised/test/{first['metric']}"
    assert f"{name}/mean" not in values[1]
    assert values[1][f"{name}/missing"] == 1
    assert f"{name}/missing" not in values[2]


def test_records_are_read_as_they_grow_and_a_line_that_is_cut_short_later(folder: RunFolder) -> None:
    text = folder.metrics.read_text()
    folder.metrics.write_text(text[:-5])
    records = GrowingRecords(folder)
    assert set(records.new()) == {1, 2, 3}
    with folder.metrics.open("a") as file:
        file.write(text[-5:])
    assert set(records.new()) == {3}
    assert records.new() == {}


@pytest.mark.parametrize("hostile", ["a/../b", "..", "", "<b>", "conv1 | head", "é", "x" * 300, "a\nb", "!head"])
def test_names_of_layers_are_plain_and_stay_apart(hostile: str) -> None:
    name = name_from("barriers", hostile, "mean")
    assert len(name) < 250
    assert len(parts := name.split("/")) == 3
    assert parts[1].strip(".")
    assert name.isascii()
    assert name.isprintable()
    assert name != name_from("barriers", f"{hostile}?", "mean")
    assert name_from("layer4.0.conv1", "fgsm:0.1") == "layer4.0.conv1/fgsm:0.1"


@pytest.mark.slow
def test_tensorboard_has_each_round_of_a_resumed_run_once(folder: RunFolder, recorded: dict[int, float]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stopped_and_resumed(folder, tensorboard=True)
    (place,) = (folder.path.parent / "tracking" / "tensorboard").iterdir()
    assert place.name == f"FedAvg-{folder.path.name}"
    read = accumulator.EventAccumulator(str(place)).Reload()
    scalars = [(event.step, event.value) for event in read.Scalars(ACCURACY)]
    assert scalars == [(step, pytest.approx(value)) for step, value in recorded.items()]
    assert {"figures/curves", "figures/clients"} <= set(read.Tags()["images"])


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_mlflow_has_each_round_of_a_resumed_run_once(
    folder: RunFolder, recorded: dict[int, float], tmp_path: Path
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path}/db/mlflow.db"
    stopped_and_resumed(folder, mlflow=uri)
    client = tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, ACCURACY)]
    assert history == [(step, pytest.approx(value)) for step, value in recorded.items()]
    assert run.info.status == "FINISHED"
    assert run.data.params["partition.alpha"] == "0.5"
    artifacts = {each.path for each in client.list_artifacts(run.info.run_id, "report")}
    assert {"report/report.html", "report/curves.png"} <= artifacts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of sqlalchemy, to MLflow
@pytest.mark.usefixtures("plain_pages")
def test_mlflow_gets_the_settings_that_a_kill_kept_from_it(folder: RunFolder, tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path}/db/mlflow.db"
    client = tracking.MlflowClient(tracking_uri=uri)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tracking.MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        Feed(active(folder, mlflow=uri)).send()
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert not run.data.params
    client.log_param(run.info.run_id, "partition.alpha", "as it was")
    second = Feed(active(folder, mlflow=uri))
    second.send()
    second.close()
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert run.data.params["rounds"] == "3"
    assert run.data.params["partition.alpha"] == "as it was"


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_wandb_has_each_round_of_a_resumed_run_once(
    folder: RunFolder, recorded: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    stopped_and_resumed(folder, wandb="fedsim tests")
    (place,) = (folder.path.parent / "tracking" / "wandb").glob("offline-run-*")
    deadline, records = time.monotonic() + 30, list[Any]()
    while not any(record.WhichOneof("record_type") == "exit" for record in records):  # its own process writes
        assert time.monotonic() < deadline
        records = list(offline_records(next(place.glob("*.wandb"))))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group) == ("fedsim tests", "study")
    history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    values = [{item.key or "/".join(item.nested_key): item.value_json for item in each.item} for each in history]
    found = [(each.step.num, float(row[ACCURACY])) for each, row in zip(history, values, strict=True)]
    assert found == [(step, pytest.approx(value)) for step, value in recorded.items()]
    assert (place / "files" / "report" / "report.html").exists()


def offline_records(path: Path) -> Iterator[Any]:
    """Yield the records of a file of Weights & Biases: protocol buffers in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_trackio_has_each_round_of_a_resumed_run_once(
    folder: RunFolder, recorded: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage", reason="needs an older Pillow").SQLiteStorage
    stopped_and_resumed(folder, trackio="fedsim tests")
    (name,) = storage.get_runs("fedsim tests")
    logs = [(row["step"], row[ACCURACY]) for row in storage.get_logs("fedsim tests", name) if ACCURACY in row]
    assert logs == [(step, pytest.approx(value)) for step, value in recorded.items()]


class Memory:
    """A tracker that keeps what it is sent, and is out of order for a while."""

    kept: dict[int, dict[str, float]]
    failures = 0
    attached: list[str]

    def __init__(self, target: str, run: Sent) -> None:
        pass

    def start(self) -> int:
        return max(self.kept, default=0)

    def send(self, server_round: int, values: dict[str, float]) -> None:
        if Memory.failures:
            Memory.failures -= 1
            raise ConnectionError("https://me:secret@host does not answer")
        assert server_round not in self.kept
        self.kept[server_round] = dict(values)

    def attach(self, report: Path, last_round: int) -> None:
        self.attached.append(f"{(report / 'report.html').exists()} {last_round}")

    def close(self, *, complete: bool) -> None:
        pass


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, plain_pages: None) -> type[Memory]:
    """Put a tracker in memory in the place of TensorBoard."""
    Memory.kept, Memory.failures, Memory.attached = {}, 0, []
    monkeypatch.setattr(feed, "TRACKERS", {"tensorboard": Memory})
    return Memory


def test_a_tracker_that_fails_is_a_warning_once_and_gets_the_rest_at_the_end(
    tiny: Callable[..., Config], tmp_path: Path, memory: type[Memory], caplog: pytest.LogCaptureFixture
) -> None:
    memory.failures = 1
    runs = name_runs([tiny(rounds=3, barriers__every=0, track__tensorboard=True)], tmp_path / "study")
    assert not run_all(runs, 1)
    log = runs[0].folder.log.read_text()
    assert log.count("tensorboard failed (ConnectionError: https://...@host does not answer)") == 1
    assert sorted(memory.kept) == [1, 2, 3]
    assert memory.attached == ["True 3"]


def test_what_a_tracker_never_got_is_sent_when_the_same_command_is_run_again(
    tiny: Callable[..., Config], tmp_path: Path, memory: type[Memory], capsys: pytest.CaptureFixture[str]
) -> None:
    memory.failures = 100
    config = tiny(rounds=2, barriers__every=0, track__tensorboard=True)
    assert not run_all(name_runs([config], tmp_path / "study"), 1)
    assert not memory.kept
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("tensorboard failed") == shown.count("tensorboard is missing part of the run") == 1
    memory.failures = 0
    assert not run_all(name_runs([config], tmp_path / "study"), 1)
    assert sorted(memory.kept) == [1, 2]
    assert not run_all(name_runs([config], tmp_path / "study"), 1)
    assert memory.attached == ["True 2"]


def test_a_page_that_cannot_be_written_for_a_tracker_does_not_fail_the_run(
    tiny: Callable[..., Config], tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = name_runs([tiny(rounds=2, barriers__every=0, track__tensorboard=True)], tmp_path / "study")
    with monkeypatch.context() as full:
        full.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        assert not run_all(runs, 1)
    assert sorted(memory.kept) == [1, 2]
    assert not memory.attached
    assert not run_all(runs, 1)
    assert memory.attached == ["True 2"]


def test_a_folder_of_trackers_that_cannot_be_written_is_a_warning(
    tiny: Callable[..., Config], tmp_path: Path, memory: type[Memory], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = name_runs([tiny(rounds=2, barriers__every=0, track__tensorboard=True)], tmp_path / "study")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "tracking").touch()
    assert not run_all(runs, 1)
    assert runs[0].folder.done.exists()
    assert "will send the run to its trackers again" in " ".join(capsys.readouterr().err.split())


def test_a_tracker_that_is_asked_for_again_gets_a_run_no_second_time(
    folder: RunFolder, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TRACKERS", {"tensorboard": Memory, "wandb": Memory})
    one, other = active(folder, tensorboard=True), active(folder, wandb="project")
    sent = [catch_up(run, lambda: FinishedRun.from_result(read_result(folder))) for run in (one, other, one, other)]
    assert sent == [True, True, False, False]


def test_a_run_that_is_killed_before_its_first_checkpoint_stays_one_run_of_its_trackers(
    tiny: Callable[..., Config], tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = list[str]()
    monkeypatch.setattr(memory, "__init__", lambda self, target, run: keys.append(run.key))
    config = tiny(rounds=2, barriers__every=0, checkpoint_every=2, track__tensorboard=True)

    def killed(run: fedsim.ActiveRun, summary: fedsim.Round) -> None:
        raise KeyboardInterrupt

    with pytest.raises(fedsim.RunError, match="stopped"):
        run_all(name_runs([config], tmp_path / "study", callbacks=[callback_of(killed)]), 1)
    (run,) = name_runs([config], tmp_path / "study")
    assert run.rounds_left == 2
    assert not run_all([run], 1)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert sorted(memory.kept) == [1, 2]
    assert [start["after_round"] for start in run.folder.read_env()["starts"]] == [0]


def test_tracking_changes_no_byte_and_no_name_of_a_run(
    tiny: Callable[..., Config], tmp_path: Path, memory: type[Memory]
) -> None:
    plain, tracked = (
        name_runs([config], tmp_path / name)[0]
        for name, config in (("plain", tiny()), ("tracked", tiny(track__tensorboard=True, callbacks=["mine:f"])))
    )
    assert plain.folder.path.name == tracked.folder.path.name
    assert plain.config.to_toml() == tracked.config.to_toml()
    without = name_runs([tiny(track__tensorboard=True)], tmp_path / "tracked")
    assert not run_all([plain], 1) | run_all(without, 1)
    assert memory.kept
    for name in ("config.toml", "metrics.jsonl", "communication.jsonl", "checkpoints/round-00002/global.safetensors"):
        assert (plain.folder.path / name).read_bytes() == (without[0].folder.path / name).read_bytes()
    files = [{path.name for path in run.folder.path.iterdir()} for run in (plain, without[0])]
    assert files[0] == files[1]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "find_spec", lambda name: None)
    with pytest.raises(fedsim.ConfigError, match=r"track.wandb needs .* pip install 'fedsim-layerwise\[wandb\]'"):
        fedsim.run(TINY | {"tune": {"local.lr": [0.1]}}, {"track.wandb": "study"}, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("track.mlflow", "mlruns", "must be a database or a server"),
        ("track.mlflow", "file:mlruns", "must be a database or a server"),
        ("track.wandb", "a/b", "must be the name of a project"),
        ("track.trackio", "?!", "must be the name of a project"),
        ("track.wandb", "a\x1b[2J", "must be the name of a project"),
        ("track.tensorboard", "yes", "valid boolean"),
        ("track.comet", "x", "unknown key"),
        ("callbacks", ["../mine.py"], "must be a module and what is in it"),
        ("callbacks", ["os:getcwd"], "which no experiment may call"),
        ("sweep", {"track.wandb": ["a", "b"]}, "cannot be swept"),
    ],
)
def test_wrong_settings_of_trackers_are_refused(tmp_path: Path, setting: str, value: Any, rule: str) -> None:
    with pytest.raises(fedsim.ConfigError, match=rule):
        fedsim.run(TINY | ({setting: value} if "." not in setting else {}), {setting: value} if "." in setting else {},
                   out=tmp_path)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_database_for_mlflow_with_a_password_is_in_no_file_of_the_run(tiny: Callable[..., Config]) -> None:
    assert "secret" not in tiny(track__mlflow="postgresql://me:secret@host/db").to_toml()


class Calls(fedsim.Callback):
    """Keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_run_start(self, run: fedsim.ActiveRun) -> None:
        self.calls.append(f"start {run.experiment} after {run.done}")

    def on_round(self, run: fedsim.ActiveRun, summary: fedsim.Round) -> None:
        lines = (run.path / "timing.jsonl").read_text().count("\n")
        self.calls.append(f"round {summary.round} of {run.settings['rounds']}, {lines} on disk")

    def on_run_end(self, result: fedsim.FinishedRun) -> None:
        assert not (result.path / "DONE").exists()
        assert (result.path / "report.html").exists()
        self.calls.append(f"end with {result.metrics['round'].max()}")


def test_callbacks_are_called_in_order_with_records_on_disk(tmp_path: Path) -> None:
    callback, rounds = Calls(), list[str]()
    called = [callback, lambda run, summary: rounds.append(f"{run.name} {summary.round}")]
    fedsim.run(TINY, {"rounds": 2}, out=tmp_path, jobs=1, callbacks=called)
    assert callback.calls == [
        "start experiment after 0",
        *("round 1 of 2, 1 on disk", "round 2 of 2, 2 on disk"),
        "end with 2",
    ]
    assert rounds == ["FedAvg seed 0 1", "FedAvg seed 0 2"]


def test_a_run_that_another_command_has_finished_meanwhile_is_skipped_with_its_callbacks(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str], plain_pages: None
) -> None:
    configs = [tiny(rounds=1, seed=seed, barriers__every=0) for seed in (0, 1)]

    calls = list[str]()

    class Other(fedsim.Callback):
        def on_run_start(self, run: fedsim.ActiveRun) -> None:
            calls.append(run.name)
            assert not run_all(name_runs(configs[1:], tmp_path), 1)
            capsys.readouterr()

    assert not run_all(name_runs(configs, tmp_path, callbacks=[Other()]), 1)
    assert calls == ["FedAvg seed 0"]
    shown = capsys.readouterr().err
    assert "FedAvg seed 1: done" in shown
    assert "resuming" not in shown


def test_an_exception_of_a_callback_fails_its_run_in_a_line_and_the_next_resumes_it(tmp_path: Path) -> None:
    def early(run: fedsim.ActiveRun, summary: fedsim.Round) -> None:
        raise KeyError("label")

    with pytest.raises(fedsim.RunError, match=r"callback .*early failed in on_round, round 1: KeyError: 'label' \("):
        fedsim.run(TINY, {"rounds": 2}, out=tmp_path, jobs=1, callbacks=[early])
    callback = Calls()
    fedsim.run(TINY, {"rounds": 2}, out=tmp_path, jobs=1, callbacks=[callback])
    assert callback.calls[:2] == ["start experiment after 1", "round 2 of 2, 2 on disk"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Calls, "must be a list"),
        ("mine:f", "must be a list"),
        ([Calls], "not the class Calls; give an object of it"),
        ([3], "not 3"),
        ([lambda run: None], r"not .*<lambda>\(run\)"),
    ],
)
def test_what_is_no_callback_is_refused(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(fedsim.ConfigError, match=rf"^callbacks .*{message}"):
        fedsim.run(TINY, out=tmp_path, callbacks=given)


def test_a_callback_with_a_misspelt_hook_or_other_arguments_is_no_class() -> None:
    for hooks, message in (
        ({"on_rounds": lambda self, run, summary: None}, "Other.on_rounds is no hook; did you mean 'on_round'?"),
        ({"on_round": lambda self, run: None}, r"Other.on_round\(self, run\) must take \(self, run, summary\)"),
    ):
        with pytest.raises(fedsim.ConfigError, match=message):
            type("Other", (fedsim.Callback,), hooks)


def test_callbacks_of_a_script_run_in_its_process_and_refuse_more_jobs(tmp_path: Path) -> None:
    two, seen = TINY | {"rounds": 1, "sweep": {"seed": [0, 1]}}, list[int]()

    def keep(run: fedsim.ActiveRun, summary: fedsim.Round) -> None:
        seen.append(os.getpid())

    with pytest.raises(fedsim.ConfigError, match=r"jobs = 2 must be 1: callback .*keep cannot be sent"):
        fedsim.run(two, out=tmp_path, jobs=2, callbacks=[keep])
    fedsim.run(two, out=tmp_path, callbacks=[keep])
    assert seen == [os.getpid()] * 2


def test_an_experiment_names_callbacks_of_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("called_by_name.py").write_text(
        "from pathlib import Path\nimport fedsim\n\n\nclass Note(fedsim.Callback):\n    def on_run_end(self, result):\n"
        "        Path('ended').touch()\n\n\ndef note(run, summary):\n    Path(f'round-{summary.round}').touch()\n"
    )
    fedsim.run(TINY | {"callbacks": ["called_by_name:Note", "called_by_name:note"]}, {"rounds": 1}, jobs=1)
    assert Path("ended").exists()
    assert Path("round-1").exists()
    assert "called_by_name" not in next(Path("runs").glob("*/*/config.toml")).read_text()
