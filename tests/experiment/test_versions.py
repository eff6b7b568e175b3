"""A run resumes under the versions that wrote its rounds, unless the user accepts others."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.config import Config, naming
from fedsim.errors import ConfigError
from fedsim.experiment import beginning
from fedsim.experiment import run as experiment
from fedsim.results import report
from fedsim.results.environment import different_versions, versions
from fedsim.results.files import write_json
from fedsim.results.folder import RunFolder
from tests.conftest import unseal
from tests.experiment.damage import contents

NOW = versions()


def other(**changes: Any) -> dict[str, Any]:
    """Return versions that differ from those of today."""
    packages = {key: value for key, value in changes.items() if key in NOW["packages"]}
    rest = {key: value for key, value in changes.items() if key not in packages}
    return NOW | rest | {"packages": NOW["packages"] | packages}


@pytest.mark.parametrize("changes", [{"torch": "1.0"}, {"fedsim": "0.0.9"}, {"python": "3.9.1"}, {"numpy": "1.0"}])
def test_a_run_does_not_resume_under_other_versions_unless_they_are_accepted(
    changes: dict[str, str], stopped: RunFolder, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "versions", lambda: other(**changes))
    before = contents(stopped)
    [(name, version)] = changes.items()
    with pytest.raises(ConfigError, match=rf"{name.replace('python', 'Python')} \S+ \(now {version[:3]}.*--accept-ver"):
        experiment.run(small, stopped, lambda summary: None)
    assert contents(stopped) == before


def test_a_run_that_resumes_under_other_versions_records_both(
    stopped: RunFolder, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "versions", lambda: other(torch="1.0"))
    experiment.run(small, stopped, lambda summary: None, accept_versions=True)
    starts = stopped.read_env()["starts"]
    assert [(each["after_round"], each["packages"]["torch"]) for each in starts] == [
        (0, NOW["packages"]["torch"]),
        (3, "1.0"),
    ]


def test_the_versions_of_rounds_that_nothing_sealed_are_recorded_too(stopped: RunFolder, small: Config) -> None:
    write_json(unseal(stopped).env, stopped.read_env() | other(torch="1.0"))
    with pytest.raises(ConfigError, match=r"torch 1\.0 \(now "):
        experiment.run(small, stopped, lambda summary: None)
    experiment.run(small, stopped, lambda summary: None, accept_versions=True)
    env = stopped.read_env()
    assert env["unsealed"]["packages"]["torch"] == "1.0"
    assert [(each["after_round"], each["packages"]["torch"]) for each in env["starts"]] == [
        (3, NOW["packages"]["torch"])
    ]


def test_a_patch_of_python_and_the_version_of_ray_change_no_numbers() -> None:
    assert different_versions(other(ray="0.1", python=f"{NOW['python'].rpartition('.')[0]}.99"), NOW) == []


def test_a_run_is_refused_before_anything_is_written(
    stopped: RunFolder, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through the Python door, which takes them as `accept_versions`."""
    settings, out = small.model_dump(mode="json", exclude_defaults=True), tmp_path / "runs"
    folder = out / "study" / naming.run_name(small)
    shutil.copytree(stopped.path, folder)
    monkeypatch.setattr(beginning, "versions", lambda: other(flwr="1.0"))
    before = contents(RunFolder(folder))
    with pytest.raises(ConfigError, match=r"flwr \S+ \(now 1\.0\)"):
        fedsim.run(settings, out=out, name="study", jobs=1)
    assert contents(RunFolder(folder)) == before
    monkeypatch.setattr(report, "write_run", lambda *_: None)  # which takes a second
    [run] = fedsim.run(settings, out=out, name="study", jobs=1, accept_versions=True)
    assert run.path == folder
