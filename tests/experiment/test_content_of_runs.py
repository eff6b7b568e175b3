"""A run computes what its name says, although files change between runs, and while one waits or is stopped."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.config.content import counted_files
from fedsim.config.experiment_file import read_experiment
from fedsim.config.toml import short_hash
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.sweep.sweep import Run, name_runs, run_all
from fedsim.federation.client.app import READ_BY_WORKERS, app_of
from fedsim.federation.federation import federation_of

pytestmark = pytest.mark.usefixtures("plain_pages")

DATA = """
import numpy as np
import torch
from fedsim import Dataset, Examples
from shift import SHIFT

def load(*, csv: str = "labels.csv"):
    labels = torch.from_numpy(np.loadtxt(csv, dtype=np.int64)) + SHIFT
    inputs = torch.linspace(-1, 1, 3 * len(labels)).reshape(-1, 3)
    return Dataset("mine", Examples(inputs, labels), Examples(inputs, labels), ("a", "b", "c"))
"""
NET = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, classes))
"""
SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "clients": 2,
    "partition": {"scheme": "iid"},
    "data": {"name": "told:load", "csv": "labels.csv"},
    "model": {"hidden": [4]},
    "barriers": {"every": 0},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    write("told.py", DATA)
    write("shift.py", "SHIFT = 0\n")
    label()
    yield
    for name in ("told", "shift", "net"):
        sys.modules.pop(name, None)


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def label(first: int = 0, second: int = 1) -> None:
    write("labels.csv", "\n".join(str(second if i % 2 else first) for i in range(40)))


def named(**changes: Any) -> list[Run]:
    return name_runs(read_experiment(SETTINGS | changes).configs(), Path("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["the file", "a module"])
def test_a_second_run_in_one_process_has_the_new_content(change: str) -> None:
    [first] = fedsim.run(SETTINGS, jobs=1)
    if change == "the file":
        label(0, 0)
    else:
        write("shift.py", "SHIFT = 1\n")
    [second] = fedsim.run(SETTINGS, jobs=1)
    assert second.path != first.path
    held = [set(run.heterogeneity.counts.labels.tolist()) for run in (first, second)]
    assert held == [{0, 1}, {0} if change == "the file" else {1, 2}]
    label()
    write("shift.py", "SHIFT = 0\n")
    done = first.folder.env.stat().st_mtime_ns
    [again] = fedsim.run(SETTINGS, jobs=1)
    assert again.path == first.path
    assert first.folder.env.stat().st_mtime_ns == done


def test_a_stopped_run_does_not_continue_with_other_data() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    [run] = named()
    with pytest.raises(KeyboardInterrupt):
        experiment.run(run.config, run.folder, stop)
    assert named()[0].rounds_left == 1
    label(1, 0)
    assert named()[0].rounds_left == 2
    label()
    assert named()[0].rounds_left == 1


def test_a_file_that_changes_while_a_run_waits_stops_it_before_it_writes() -> None:
    runs = named(sweep={"seed": [0, 1]})
    label(1, 0)
    failures = run_all(runs, 1)
    assert len(failures) == 2
    for failure in failures.values():
        assert failure.wrong_config
        assert failure.message.endswith(
            "labels.csv (data.csv) has changed since this run was named by its content; run the same command again, "
            "which starts a new run"
        )
    assert not Path("runs").exists()


def test_a_module_may_be_edited_while_runs_wait_that_have_imported_it() -> None:
    [run] = named()
    write("shift.py", "SHIFT = 1\n")
    write("told.py", DATA + "\n")
    assert run_all([run], 1) == {}
    named_by = json.loads(run.folder.env.read_text())["named_by"]
    assert run.folder.path.name == f"{short_hash(named_by)}-s0"


def test_a_worker_that_starts_later_refuses_other_content() -> None:
    write("net.py", NET)
    [run] = named(model={"name": "net:make"})
    shared, files = federation_of(run.config).shared_parts(), counted_files(run.config, READ_BY_WORKERS)
    label(1, 0)  # the worker gets the data as they were
    assert app_of(run.config, 1, files, shared)
    write("net.py", NET.replace("(3, 3)", "(3, 3, bias=False)"))
    del sys.modules["net"]  # which a worker that starts later imports as it is then
    with pytest.raises(ConfigError, match=r"net.py .* has changed since this run was named"):
        app_of(run.config, 1, files, shared)


def test_a_run_records_the_files_that_name_it_and_a_dry_run_shows_them() -> None:
    [run] = fedsim.run(SETTINGS, {"rounds": 1}, jobs=1)
    recorded = json.loads(run.folder.env.read_text())
    [config] = read_experiment(SETTINGS | {"rounds": 1}).configs()
    files = [(each["setting"], Path(each["path"]).name, each["digest"]) for each in recorded["files"]]
    assert files == [(each.setting, each.place.name, each.digest) for each in counted_files(config)]
    assert [name for _, name, _ in files] == ["told.py", "shift.py", "labels.csv"]
    assert recorded["named_by"]["data"]["csv"] == f"labels.csv {files[2][2]}"
    shown = describe_run(config)
    for setting, name, digest in files:
        assert f"{setting}  {digest}  {Path(name).absolute()}\n" in shown


def test_files_that_only_the_code_names_are_said(caplog: pytest.LogCaptureFixture) -> None:
    write("told.py", DATA.replace("np.loadtxt(csv", "np.loadtxt('labels.csv'").replace('= "labels.csv"', '= ""'))
    [config] = read_experiment(SETTINGS | {"data": {"name": "told:load"}}).configs()
    assert [each.place.name for each in counted_files(config)] == ["told.py", "shift.py"]
    place = Path("labels.csv").absolute()
    assert f"not counted: {place}, which the code names; make it an option, so that" in describe_run(config)
    fedsim.run(SETTINGS | {"data": {"name": "told:load"}, "rounds": 1}, jobs=1)
    assert f"code names {place}, whose content does not name the run" in caplog.text


def test_built_in_parts_show_and_record_nothing() -> None:
    [config] = read_experiment(SETTINGS | {"data": {"name": "digits"}}).configs()
    assert "by whose content" not in describe_run(config)


@pytest.mark.slow
def test_results_are_told_apart_by_their_content_and_read_without_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SETTINGS | {"rounds": 1, "strategy": {"name": "method:Own", "begin": "start.txt"}}
    write(
        "method.py",
        "from fedsim import Strategy\nfrom fedsim.strategy import Option\n\n"
        "class Own(Strategy):\n    begin: str = Option('', 'A file.')\n",
    )
    write("start.txt", "1")
    first = fedsim.run(settings, jobs=1)[0]
    label(1, 0)
    second = fedsim.run(settings, jobs=1)[0]
    write("start.txt", "2")
    third = fedsim.run(settings, jobs=1)[0]
    write("start.txt", "1")
    label()
    named_now = [run.partition_name for run in (first, second, third)]
    for file in ("told.py", "method.py", "shift.py", "labels.csv", "start.txt"):
        Path(file).unlink()
        sys.modules.pop(file.removesuffix(".py"), None)
    runs = fedsim.load("runs/experiment")
    assert [run.partition_name for run in runs] == named_now
    assert named_now[0] != named_now[1] == named_now[2]  # so that no gain is paired across other data
    assert {run.strategy for run in runs} == {"method:Own(begin=start.txt)"}
    compared = fedsim.compare(runs)
    assert sorted(compared.text.headings[1:3]) == ["data.csv", "strategy.begin"]
    assert [len({row[column] for row in compared.text.rows}) for column in (1, 2)] == [2, 2]
    assert len(fedsim.compare(runs, by="data.csv").text.rows) == 2


@pytest.mark.slow
def test_files_of_one_name_are_shown_with_their_folders() -> None:
    for folder, labels in (("north", (0, 1)), ("south", (1, 0))):
        Path(folder).mkdir()
        label(*labels)
        Path("labels.csv").rename(f"{folder}/labels.csv")
    sites = ["north/labels.csv", "south/labels.csv"]
    runs = fedsim.run(SETTINGS | {"rounds": 1, "sweep": {"data.csv": sites}}, jobs=1)
    column = [row[1].split()[0] for row in fedsim.compare(runs).text.rows]
    assert column == sites
