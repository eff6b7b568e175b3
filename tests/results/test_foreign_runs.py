"""Reading what somebody else has run imports no code, and reads no data, that the run's folder names."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.cli import main
from fedsim.config.config import Config
from fedsim.config.toml import read_toml, with_settings
from fedsim.results.folder import RunFolder
from tests.conftest import unseal

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
        "barriers": {"examples": 10},
        "expect": [{"metric": "accuracy", "model": "personalised", "above": -1.0}],
    }
    [run] = fedsim.run(settings, out=tmp_path_factory.mktemp("runs"), jobs=1)
    return run.path


@pytest.mark.parametrize(
    ("changes", "named_by"),
    [(NAMES, None), (READS, None), (NAMES, {"strategy": NAMES["strategy"]})],
    ids=["code", "data", "code and what the run says it was named by"],
)
def test_reading_results_imports_and_reads_nothing_that_a_run_names(
    changes: dict[str, Any], named_by: object, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedsim.config.catalogue.load_custom", None)
    monkeypatch.setattr("fedsim.results.report.pages.page.save", lambda figure, kind: b"")  # which takes seconds
    Path("foreign_code.py").write_text("open('imported', 'w')\ndef load(): ...\n")
    os.mkfifo("pipe")  # which waits for ever when it is read
    run = unseal(RunFolder(shutil.copytree(original, tmp_path / "foreign")))
    settings = with_settings(read_toml(run.config), {(table,): choice for table, choice in changes.items()})
    run.config.write_text(Config.parse(settings, "foreign").to_toml())
    # What an earlier version has left: its files can be changed without anybody noticing.
    run.env.write_text(json.dumps({"started": run.read_env()["started"], "named_by": named_by}))
    run.done.write_text("")
    shutil.rmtree(run.checkpoints)
    (run.path / "seals.jsonl").unlink(missing_ok=True)
    for command in ("compare", "report", "check"):
        monkeypatch.setattr(sys, "argv", ["fedsim", command, "foreign"])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    result = fedsim.load("foreign")
    assert "foreign" in repr(result[0]) + repr(fedsim.compare(result))
    assert "foreign_code" not in sys.modules
    assert not Path("imported").exists()
