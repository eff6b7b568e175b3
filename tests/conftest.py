import os

# Set before torch is imported anywhere, as the engines do for their workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image

import fedsim.federation.engines.ray  # noqa: F401 (sets what Ray reads when it is imported)
from fedsim.cli import commands
from fedsim.config import Config, choices, with_settings
from fedsim.experiment import run as experiment
from fedsim.federation.engines.processes import few_processes
from fedsim.results import report
from fedsim.results.files import write_json
from fedsim.results.folder import RunFolder
from tests import ray_workers

Command = Callable[..., tuple[int, str, str]]
TINY: dict[str, Any] = {
    "rounds": 2,
    "clients": 4,
    "data": {"name": "digits", "train_examples": 200, "test_examples": 60},
    "partition": {"scheme": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [12]},
    "local": {"lr": 0.1, "batch_size": 16},
    "barriers": {"every": 2, "pairs": 2, "on": ["server"], "examples": 40},
    "engine": {"workers": 1},
}


def pytest_configure() -> None:
    """Keep the tests' folders in memory where there is room: runs wait for a disk after each round."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 2**32:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Search for garbage neither while modules are imported nor later among what they hold, which stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: Ray, which is then started by one process, and whole experiments."""
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None, "whole" not in item.path.parts))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start Ray once for all tests of this process; an engine uses what is already there, workers too."""
    with few_processes():
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ray_workers.hand_on(monkeypatch)
        yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _ray_where_it_is_marked(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("ray")
    if marker and not marker.kwargs.get("alone"):
        request.getfixturevalue("ray_session")


def heed_interrupts() -> None:
    """Let a process that is about to start end on Ctrl-C, which it would ignore if this one ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """Build a resolved config of a run that takes a moment; changes are dotted settings.

    Barriers are measured on the server's data, unless the changes say otherwise.
    """

    def build(**changes: Any) -> Config:
        settings = with_settings(TINY, {tuple(key.split("__")): value for key, value in changes.items()})
        settings["barriers"] = {"on": ["server"]} | settings["barriers"]
        return choices.resolve(Config.parse(settings, "tiny"))

    return build


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., RunFolder]:
    """Play a whole run into a folder of its own."""

    def run(config: Config, name: str = "run") -> RunFolder:
        folder = RunFolder(tmp_path / name)
        experiment.run(config, folder, lambda summary: None)
        return folder

    return run


class Stop(BaseException):
    """The process ends here."""


def run_until(config: Config, folder: RunFolder, server_round: int) -> RunFolder:
    """Run an experiment, and stop it after a round as a kill does."""

    def stop(summary: experiment.RoundSummary) -> None:
        if summary.server_round == server_round:
            raise Stop

    with pytest.raises(Stop):
        experiment.run(config, folder, stop)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command of ``fedsim`` in this process; return its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as exit_:
            commands.main()
        return (int(exit_.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process have pages without charts, which take longer than a tiny run."""
    monkeypatch.setattr(report, "write_run", plain_page)


def plain_page(result: object, out: Path, *, export: bool = False) -> None:
    """Write a page and a figure at once, in place of those of a run."""
    (out / "report.html").write_text("<p>page</p>")
    if export:
        Image.new("RGB", (4, 4)).save(out / "curves.png")


def unseal(folder: RunFolder) -> RunFolder:
    """Leave of a run what earlier versions wrote, which sealed nothing, so that its files may be changed."""
    for path in [*folder.checkpoints.rglob("manifest.json"), folder.seals]:
        path.unlink(missing_ok=True)
    env = folder.read_env()
    env.pop("starts", None)
    write_json(folder.env, env)
    if folder.done.exists():
        folder.done.write_text("")
    return folder


def run_files(folder: RunFolder) -> dict[str, bytes]:
    """Return the content of all files that must be equal in equal runs."""
    own = (".lock", "env.json", "timing.jsonl", "log.txt", "config.toml", "report.html", "DONE")
    files = {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in sorted(folder.path.rglob("*"))
        if path.is_file() and path.name not in own
    }
    return {name: _of_equal_runs(content) if "manifest" in name else content for name, content in files.items()}


def _of_equal_runs(manifest: bytes) -> bytes:
    """Return what a manifest says of numbers, without the timing, the starts and what depends on them."""
    said = json.loads(manifest)
    records = {name: seal for name, seal in said["records"].items() if name != "timing.jsonl"}
    return json.dumps({"round": said["round"], "files": said["files"], "records": records}).encode()
