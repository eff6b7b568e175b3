"""Reading what somebody else has run imports no code, and reads no data, that the run's folder names."""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.config.config import Config
from fedsim.config.toml import read_toml, with_settings
from fedsim.errors import ConfigError
from fedsim.results.folder import RunFolder
from fedsim.results.seals import read_sealed, write_sealed
from tests.conftest import Command, unseal

NAMES: dict[str, Any] = {
    "data": {"name": "foreign_code:load", "path": "pipe"},
    "partition": {"scheme": "foreign_code:split", "alpha": 0.5},
    "features": {"skew": "os:system", "command": "touch imported"},
    "model": {"name": "../../foreign_code:net"},
    "strategy": {"name": "foreign_code:Own", "shared": "all"},
}
READS: dict[str, Any] = {"data": {"name": "image-folder", "path": "pipe"}}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run something small."""
    settings = {
        "rounds": 1,
        "clients": 2,
        "data": {"train_examples": 60, "test_examples": 30},
        "partition": {"scheme": "iid"},
        "model": {"hidden": [4]},
        "barriers": {"every": 1, "groups": ["full"], "examples": 10},
        "expect": [{"metric": "accuracy", "model": "personalised", "above": -1.0}],
    }
    [run] = fedsim.run(settings, out=tmp_path_factory.mktemp("runs"), jobs=1)
    return run.path


@pytest.fixture(autouse=True)
def _figures_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.results.report.pages.html.save", lambda figure, kind: b"")


def unsealed(original: Path, path: Path) -> RunFolder:
    """Copy a run as an earlier version has left it: its files can be changed without anybody noticing."""
    run = RunFolder(shutil.copytree(original, path))
    run.env.write_text(json.dumps({"started": run.read_env()["started"]}))
    run.done.write_text("")
    run.seals.unlink()
    shutil.rmtree(run.checkpoints)
    return run


@pytest.mark.parametrize(
    ("changes", "named_by"),
    [(NAMES, None), (READS, None), (NAMES, {"strategy": NAMES["strategy"]})],
    ids=["code", "data", "code and what the run says it was named by"],
)
def test_reading_results_imports_and_reads_nothing_that_a_run_names(
    changes: dict[str, Any],
    named_by: object,
    original: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedsim.config.catalogue.load_custom", None)
    Path("foreign_code.py").write_text("open('imported', 'w')\ndef load(): ...\n")
    os.mkfifo("pipe")  # which waits for ever when it is read
    run = unseal(RunFolder(shutil.copytree(original, tmp_path / "foreign")))
    settings = with_settings(read_toml(run.config), {(table,): choice for table, choice in changes.items()})
    run.config.write_text(Config.parse(settings, "foreign").to_toml())
    run.env.write_text(json.dumps(run.read_env() | {"named_by": named_by}))
    for name in ("compare", "report", "check"):
        assert command(name, "foreign")[0] == 0
    result = fedsim.load("foreign")
    assert "foreign" in repr(result[0]) + repr(fedsim.compare(result))
    assert "foreign_code" not in sys.modules
    assert not Path("imported").exists()


@pytest.mark.parametrize("text", ["[]", "{", "null", "3", "[" * 100_000, "\0"])
@pytest.mark.parametrize("name", ["env.json", "model.json", "participants.json", "partition.parquet"])
def test_a_damaged_file_is_one_line(name: str, text: str, original: Path, tmp_path: Path) -> None:
    run = unsealed(original, tmp_path / "foreign")
    (run.path / name).write_text(text)
    with suppress(ConfigError):
        [result] = fedsim.load(run.path)
        fedsim.compare([result])
        result.updates, result.participants, result.folder.read_model()


@pytest.mark.parametrize(
    "env",
    [
        *({"started": started} for started in (3, [], [3], {})),
        *({"named_by": named_by} for named_by in ([1], "x", {"strategy": 3}, {"data": [3]}, {"partition": "x"})),
    ],
)
def test_an_environment_of_another_form_is_one_line(env: dict[str, Any], original: Path, tmp_path: Path) -> None:
    run = unsealed(original, tmp_path / "foreign")
    run.env.write_text(json.dumps({"started": ["2026"]} | env))
    with suppress(ConfigError):
        fedsim.compare(fedsim.load(run.path))


@pytest.mark.parametrize("name", ["env.json", "metrics.jsonl", "barriers/round-00001.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_pipe_or_a_device_in_a_run_is_not_read(
    name: str, kind: str, is_sealed: bool, original: Path, tmp_path: Path
) -> None:
    path = tmp_path / "foreign"
    run = RunFolder(shutil.copytree(original, path)) if is_sealed else unsealed(original, path)
    (run.path / name).unlink()
    if kind == "pipe":
        os.mkfifo(run.path / name)
    else:
        (run.path / name).symlink_to("/dev/zero")
    with pytest.raises((ConfigError, OSError), match=r"it is a (named pipe|device) and not a file"):
        fedsim.load(run.path)


@pytest.mark.parametrize("place", ["/dev/zero", "../../outside"])
def test_a_seal_names_no_file_outside_of_its_folder(place: str, original: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(original, tmp_path / "foreign"))
    done = read_sealed(run.done)
    write_sealed(run.done, done | {"files": {place: next(iter(done["files"].values()))}})
    with pytest.raises(ConfigError, match=f"names '{place}', which is outside of it"):
        fedsim.load(run.path)
