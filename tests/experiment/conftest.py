import shutil
from pathlib import Path

import pytest

from fedsim.config import Config, choices, with_settings
from fedsim.experiment import run as experiment
from fedsim.results.folder import RunFolder
from tests.conftest import TINY, run_until

CHANGES = {
    ("rounds",): 4,
    ("data", "train_examples"): 120,
    ("participation",): 0.5,
    ("strategy",): {"name": "layer_set", "shared": "body"},
    ("barriers", "every"): 2,
    ("checkpoints", "keep"): "last",
}
STOPPED = 3


@pytest.fixture(scope="session")
def small() -> Config:
    """Return the config of a run whose clients keep layers for themselves."""
    return choices.resolve(Config.parse(with_settings(TINY, CHANGES), "small"))


@pytest.fixture(scope="session")
def whole(small: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run that is done, which no test changes."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    experiment.run(small, folder, lambda summary: None)
    experiment.complete(folder)
    return folder


@pytest.fixture(scope="session")
def _stopped(small: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_until(small, RunFolder(tmp_path_factory.mktemp("stopped") / "run"), STOPPED)


@pytest.fixture
def stopped(_stopped: RunFolder, tmp_path: Path) -> RunFolder:
    """Return a run that was stopped before its last round."""
    return RunFolder(Path(shutil.copytree(_stopped.path, tmp_path / "run")))


@pytest.fixture
def done(whole: RunFolder, tmp_path: Path) -> RunFolder:
    """Return a run that is done."""
    return RunFolder(Path(shutil.copytree(whole.path, tmp_path / "run")))


@pytest.fixture(scope="session")
def other(small: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run that is done and differs in its seed, which no test changes."""
    folder = RunFolder(tmp_path_factory.mktemp("other") / "run")
    experiment.run(small.model_copy(update={"seed": 1}), folder, lambda summary: None)
    experiment.complete(folder)
    return folder
