"""The runs of a sweep: the same on disk however many are played at a time, and each on its own when it fails."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jinja2
import pytest
import tomli_w

from fedsim.cli.terminal import write_to
from fedsim.config import Config
from fedsim.errors import ConfigError, RunError
from fedsim.experiment import run as experiment
from fedsim.experiment.sweep import sweep
from fedsim.experiment.sweep.failure import Failure
from fedsim.experiment.sweep.sweep import Run, check, name_runs, run_all
from fedsim.results import report
from tests.conftest import TINY, heed_interrupts, run_files

pytestmark = pytest.mark.usefixtures("plain_pages")

OWN = """
import logging
import errno
import os
import signal
from fedsim.errors import ConfigError, RunError
from fedsim.strategy import Strategy

class Fails(Strategy):
    def __init__(self, model, how: str, **settings):
        super().__init__(model, **settings)
        self.how = how

    def aggregate(self, server_round, updates):
        match self.how:
            case "killed": os.kill(os.getpid(), signal.SIGKILL)
            case "interrupted": raise KeyboardInterrupt
            case "bug": raise TypeError("odd\\nthing")
            case "config": raise ConfigError("mend me")
            case "run": raise RunError("came to nothing")
            case "warns": logging.getLogger("fedsim.own").warning("look out")
        return super().aggregate(server_round, updates)
"""


@pytest.fixture
def failing(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Run]]:
    """Build one run for each way to fail."""
    (tmp_path / "failing.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)

    def build(*ways: str) -> dict[str, Run]:
        configs = [tiny(strategy={"name": "failing:Fails", "how": how}, barriers__every=0) for how in ways]
        return dict(zip(ways, name_runs(configs, tmp_path / "out"), strict=True))

    return build


def files(runs: list[Run]) -> list[dict[str, bytes]]:
    return [run_files(run.folder) | {"config": run.folder.config.read_bytes()} for run in runs]


@pytest.mark.slow
def test_side_by_side_a_sweep_leaves_the_bytes_of_one_run_after_the_other(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [tiny(seed=seed, rounds=3, engine__workers=0) for seed in (0, 1)]
    one, both = (name_runs(configs, tmp_path / name) for name in ("one", "both"))
    for runs in (one, both):  # the first goes on after a round
        experiment.run(configs[0], runs[0].folder, lambda summary: None, until=1)
    assert run_all(one, 1) == {}
    one_err = capsys.readouterr().err
    assert run_all(both, 2) == {}
    both_err = capsys.readouterr().err
    assert files(both) == files(one)
    assert all(run.folder.report.exists() and run.folder.done.exists() for run in both)
    assert one_err.startswith("2 runs, one after the other (--jobs 1)\n")
    assert both_err.startswith("2 runs, 2 at a time with ")
    shown = [sorted(line.partition(": /")[0] for line in text.splitlines()[1:]) for text in (one_err, both_err)]
    assert shown[0] == shown[1]
    assert shown[0].count("FedAvg seed 0: resuming after round 1") == 1
    assert [line[-7:] for line in shown[0] if line.startswith("FedAvg seed 0  ")] == ["round 2", "round 3"]


@pytest.mark.slow
def test_no_part_of_a_single_run_is_built_twice(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    prepare = experiment.prepare

    def counting(config: Config) -> Any:
        prepared.append(config.seed)
        return prepare(config)

    monkeypatch.setattr(experiment, "prepare", counting)
    assert run_all(name_runs([tiny(seed=3, barriers__every=0)], tmp_path)) == {}
    assert prepared == [3]
    # Those of several are not kept, except the first's; and what is done is not built at all.
    assert run_all(name_runs([tiny(seed=seed, barriers__every=0) for seed in (3, 4, 5)], tmp_path), 1) == {}
    assert prepared == [3, 4, 5, 5]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_stop_the_others(
    failing: Callable[..., dict[str, Run]], capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    runs = failing("bug", "config", "run", *(["killed"] if jobs > 1 else []), "warns")
    failures = run_all(list(runs.values()), jobs)
    by_way = {how: failures[run.name] for how, run in runs.items() if how != "warns"}
    again = "rerun the same command to resume from the last completed round"
    assert by_way["config"] == Failure("mend me", wrong_config=True)
    assert by_way["run"] == Failure("came to nothing")
    assert by_way["bug"].message == (
        "TypeError: odd thing (failing.py, line 18); fix it and run the same command again; the traceback is in "
        f"{runs['bug'].folder.log}"
    )
    if jobs > 1:
        cause = f"its process was killed by SIGKILL; {again}, with a smaller --jobs if memory ran out"
        assert by_way["killed"] == Failure(cause)
    assert [how for how, run in runs.items() if run.folder.done.exists()] == ["warns"]
    err = capsys.readouterr().err
    assert err.count(f"WARNING {runs['warns'].name}: look out\n") == 2
    assert "Traceback" not in err
    assert "in aggregate\n" in runs["bug"].folder.log.read_text()


@pytest.mark.slow
def test_an_interrupt_between_runs_of_one_process_is_one_line(failing: Callable[..., dict[str, Run]]) -> None:
    runs = failing("warns", "interrupted", "bug")
    with pytest.raises(RunError, match=r"^stopped; rerun the same command to resume from the last completed round$"):
        run_all(list(runs.values()), 1)
    assert [how for how, run in runs.items() if run.folder.path.exists()] == ["warns", "interrupted"]


def test_runs_that_differ_in_more_than_strategy_and_seed_have_names_of_their_own(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    runs = name_runs([tiny(local__lr=0.1), tiny(local__lr=0.2), tiny(seed=1)], tmp_path)
    assert [run.name for run in runs] == [
        f"FedAvg seed 0 ({runs[0].folder.path.name})",
        f"FedAvg seed 0 ({runs[1].folder.path.name})",
        "FedAvg seed 1",
    ]
    with pytest.raises(ConfigError, match=r"1 and 2 are both FedAvg seed 0 .*: the same run"):
        name_runs([tiny(), tiny()], tmp_path)


def test_runs_that_average_the_same_layers_are_named_once(
    tiny: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = [{"name": "layer_set", "shared": shared} for shared in ("body", "!head", "head", "none", "all")]
    others = [{"name": name} for name in ("local", "full", "fedprox", "layer_cycle")]
    buffers = [{"name": "full", "buffers": "personal"}]
    check(name_runs([tiny(strategy=each) for each in shared + others + buffers], tmp_path))
    same = "average the same layers and give the same numbers; one of them is enough"
    assert caplog.messages == [
        f"FedPer seed 0 and layer_set(shared=!head) seed 0 {same}",
        f"layer_set(shared=none) seed 0 and local seed 0 {same}",
        f"layer_set seed 0 and FedAvg seed 0 {same}",
    ]


def test_a_mistake_in_the_last_run_is_found_before_the_first_begins(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    runs = name_runs([tiny(), tiny(clients=50)], tmp_path / "out")
    with pytest.raises(ConfigError, match="50 clients with at least 10 examples each"):
        run_all(runs, 2)
    assert not (tmp_path / "out").exists()


def of_session(leader: int) -> list[str]:
    """Return the processes of a session that run."""
    command = ["ps", "-s", str(leader), "-o", "stat=,pid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in lines if not line.startswith("Z")]


@pytest.mark.slow
def test_ctrl_c_ends_all_runs_of_a_sweep_and_keeps_their_rounds(tiny: Callable[..., Config], tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(TINY | {"rounds": 100_000, "sweep": {"seed": [0, 1, 2]}}))
    command = [sys.executable, "-m", "fedsim", "run", str(study), "--jobs", "2", "--out", str(tmp_path)]
    # In a session of its own, so that the interrupt reaches every process of it, as from a terminal.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_interrupts
    ) as process:
        assert process.stderr is not None
        lines = []
        while sum("round 2" in line for line in lines) < 2 and (line := process.stderr.readline()):
            lines.append(line)
        os.killpg(process.pid, signal.SIGINT)
        lines += process.stderr.readlines()
    assert process.returncode == 1
    assert lines[-1] == "fedsim: error: stopped; rerun the same command to resume from the last completed round\n"
    assert "Traceback" not in "".join(lines)
    deadline = time.monotonic() + 30  # the server that forks the runs' processes ends by itself after its parent
    while of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert of_session(process.pid) == []
    runs = name_runs([tiny(seed=seed, rounds=100_000) for seed in (0, 1, 2)], tmp_path / "study")
    assert [experiment.rounds_done(run.folder) >= 2 for run in runs] == [True, True, False]


@pytest.mark.slow
def test_without_jobs_as_many_runs_are_played_as_there_are_processors(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "processors", lambda: 2)
    runs = name_runs([tiny(seed=seed, rounds=1, barriers__every=0) for seed in range(3)], tmp_path)
    assert run_all(runs) == {}
    assert "3 runs, 2 at a time with 1 worker each (2 processors; --jobs changes it)\n" in capsys.readouterr().err


def test_a_bug_that_looks_like_an_error_of_files_is_one_line_as_others_are(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise jinja2.TemplateNotFound("page.html")  # an OSError without a number

    monkeypatch.setattr(report, "write_run", fail)
    [failure] = run_all(name_runs([tiny(rounds=1, barriers__every=0)], tmp_path), 1).values()
    assert failure.message.startswith("TemplateNotFound: page.html (test_sweep.py, line ")
    with pytest.raises(jinja2.TemplateNotFound):
        write_to(tmp_path, fail)


def test_a_write_that_fails_is_told_with_the_runs_folder(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(experiment, "run", Mock(side_effect=full))  # not by a function of this file, a user's
    run = name_runs([tiny()], tmp_path)[0]
    failure = sweep.run_one(run, lambda event: None)
    assert failure is not None
    assert failure.message.startswith(f"{run.folder.path}: No space left on device; free some space")


def test_a_folder_whose_path_is_not_utf_8_is_refused_before_its_checkpoints_cannot_be_read(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"a path that is not UTF-8, which safetensors needs; use --out"):
        run_all(name_runs([tiny()], tmp_path / os.fsdecode(b"M\xfcnchen")))
    assert not list(tmp_path.iterdir())
    assert not run_all(name_runs([tiny(rounds=1, barriers__every=0)], tmp_path / "München"))
