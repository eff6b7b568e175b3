"""A damaged checkpoint is noticed: the one before it is used, and the numbers are those of an unbroken run."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.config import Config, choices, with_settings
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.kept_round import kept_round
from fedsim.results.folder import RunFolder
from tests.conftest import TINY, run_files

CHANGES = {
    ("rounds",): 4,
    ("data", "train_examples"): 120,
    ("participation",): 0.5,
    ("strategy",): {"name": "layer_set", "shared": "body"},
    ("barriers", "every"): 3,
    ("checkpoints", "keep"): "last",
}
STOPPED = 3


class Stop(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def config() -> Config:
    return choices.resolve(Config.parse(with_settings(TINY, CHANGES), "damaged"))


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run all rounds at once."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    experiment.run(config, folder, lambda summary: None)
    return folder


@pytest.fixture(scope="module")
def stopped(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run all rounds but the last."""
    folder = RunFolder(tmp_path_factory.mktemp("stopped") / "run")

    def stop(summary: experiment.RoundSummary) -> None:
        if summary.server_round == STOPPED:
            raise Stop

    with pytest.raises(Stop):
        experiment.run(config, folder, stop)
    return folder


@pytest.fixture
def copy(stopped: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "run")))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "delete": Path.unlink}
FILES = ("global", "progress", "strategy", "clients", "manifest")


def newest_files(folder: RunFolder) -> dict[str, Path]:
    """Return the files of the newest checkpoint, and one that a client wrote for it."""
    inside = {path.stem: path for path in (folder.checkpoints / f"round-{STOPPED:05d}").iterdir()}
    return inside | {"client": next((folder.checkpoints / "clients").glob(f"*-round-{STOPPED:05d}.*"))}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, "client"])
def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_one_before(
    name: str, damage: str, copy: RunFolder, whole: RunFolder, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    path = newest_files(copy)[name]
    DAMAGES[damage](path)
    experiment.run(config, copy, lambda summary: None)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(str(path))
    assert warning.endswith(f"; the run resumes after round {STOPPED - 1} instead")
    assert run_files(copy) == run_files(whole)


def test_two_files_of_clients_that_are_swapped_are_noticed(copy: RunFolder, whole: RunFolder, config: Config) -> None:
    one, other = sorted((copy.checkpoints / "clients").glob(f"*-round-{STOPPED:05d}.*"))[:2]
    one.rename(one.with_suffix(".third"))
    other.rename(one)
    one.with_suffix(".third").rename(other)
    experiment.run(config, copy, lambda summary: None)
    assert run_files(copy) == run_files(whole)
    assert "resumes after round 2 instead" in copy.log.read_text()


def test_a_checkpoint_that_takes_the_place_of_another_is_noticed(
    copy: RunFolder, whole: RunFolder, config: Config
) -> None:
    newest, before = copy.checkpoints / "round-00003", copy.checkpoints / "kept" / "round-00002"
    shutil.rmtree(newest)
    shutil.copytree(before, newest)
    experiment.run(config, copy, lambda summary: None)
    assert run_files(copy) == run_files(whole)
    assert "manifest.json is that of round 2" in copy.log.read_text()


def test_a_run_without_a_whole_checkpoint_stays_as_it_is(copy: RunFolder, config: Config) -> None:
    for path in copy.checkpoints.rglob("global.safetensors"):
        flip(path)
    before = {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()}
    with pytest.raises(
        ConfigError, match="has another content than was written, and no earlier checkpoint is whole; re"
    ):
        experiment.run(config, copy, lambda summary: None)
    assert {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_an_earlier_version_is_used_as_it_is(copy: RunFolder, whole: RunFolder, config: Config) -> None:
    for path in copy.checkpoints.rglob("manifest.json"):
        path.unlink()
    experiment.run(config, copy, lambda summary: None)
    assert "an earlier version wrote the checkpoint of round 3" in copy.log.read_text()
    left = run_files(copy).keys() ^ run_files(whole).keys()
    assert left == {"checkpoints/kept/round-00003/manifest.json"}
    assert Checkpoints(copy.checkpoints).check(4)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "client"), [("global", None), ("manifest", None), ("clients", 0), ("client", -1)])
def test_models_of_a_damaged_checkpoint_are_not_used(
    name: str, client: int | None, damage: str, copy: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the one before it are, unless the damaged round is asked for."""
    path = newest_files(copy)[name]
    client = int(path.name[:6]) if client == -1 else client
    DAMAGES[damage](path)
    assert kept_round(copy, client).server_round == STOPPED - 1
    assert f"{path} " in caplog.text
    with pytest.raises(ConfigError, match="the models of round 3 are lost"):
        kept_round(copy, client, STOPPED)
