"""A damaged checkpoint is noticed: the one before it is used, and the numbers are those of an unbroken run."""

import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import fedsim
from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.beginning import last_whole_round
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.kept_round import kept_round
from fedsim.experiment.restored import restored_model
from fedsim.experiment.verifying.verify import verify
from fedsim.results import seals
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_file_of_checkpoint, sealed_from
from tests.conftest import Stop, run_files, unseal
from tests.experiment.conftest import STOPPED
from tests.experiment.damage import DAMAGES, contents, flip, swap

FILES = ("global", "progress", "strategy", "clients", "manifest", "client")


def newest_files(folder: RunFolder) -> dict[str, Path]:
    """Return the files of the newest checkpoint, and one that a client wrote for it."""
    inside = {path.stem: path for path in (folder.checkpoints / f"round-{STOPPED:05d}").iterdir()}
    return inside | {"client": next((folder.checkpoints / "clients").glob(f"*-round-{STOPPED:05d}.*"))}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_checkpoint_before_a_damaged_one_is_used(name: str, damage: str, stopped: RunFolder) -> None:
    path = newest_files(stopped)[name]
    DAMAGES[damage](path)
    before = contents(stopped)
    begin = last_whole_round(stopped)
    [problem] = begin.problems
    assert begin.done == STOPPED - 1
    assert problem.startswith(f"{path} ")
    assert problem.endswith(f"; the run resumes after round {STOPPED - 1} instead")
    assert contents(stopped) == before


@pytest.mark.parametrize(("name", "damage"), [("global", "flip"), ("clients", "delete"), ("client", "cut")])
def test_a_run_that_resumes_before_a_damaged_checkpoint_ends_with_the_bytes_of_an_unbroken_one(
    name: str, damage: str, stopped: RunFolder, whole: RunFolder, small: Config, caplog: pytest.LogCaptureFixture
) -> None:
    path = newest_files(stopped)[name]
    DAMAGES[damage](path)
    experiment.run(small, stopped, lambda summary: None)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(f"{path} ")
    assert run_files(stopped) == run_files(whole)


@pytest.mark.parametrize(("name", "damage"), [("global", "flip"), ("clients", "cut"), ("manifest", "delete")])
def test_a_run_that_resumes_says_which_kept_models_are_lost(
    name: str, damage: str, stopped: RunFolder, whole: RunFolder, small: Config, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = (stopped.checkpoints / "kept" / f"round-{STOPPED - 1:05d}").glob(f"{name}.*")
    DAMAGES[damage](path)
    experiment.run(small, stopped, lambda summary: None)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(f"{path} ")
    assert warning.endswith(f"; the models of round {STOPPED - 1} are lost")
    assert stopped.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_resumed_run_reads_each_clients_file_once_to_check_it(
    stopped: RunFolder, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of clients that did not take part between two checkpoints belong to both."""
    read, before = Counter[Path](), {*(stopped.checkpoints / "clients").iterdir()}

    def counting(path: Path, size: int | None = None) -> seals.Seal:
        read[path] += 1
        return seal_of(path, size)

    seal_of = seals.seal_of
    monkeypatch.setattr(seals, "seal_of", counting)
    experiment.run(small, stopped, lambda summary: None)
    assert {path: read[path] for path in before} == dict.fromkeys(before, 1)


def test_two_files_of_clients_that_are_swapped_are_noticed(stopped: RunFolder) -> None:
    swap(*sorted((stopped.checkpoints / "clients").glob(f"*-round-{STOPPED:05d}.*"))[:2])
    assert last_whole_round(stopped).done == STOPPED - 1


def test_a_checkpoint_that_takes_the_place_of_another_is_noticed(stopped: RunFolder) -> None:
    newest, before = stopped.checkpoints / "round-00003", stopped.checkpoints / "kept" / "round-00002"
    shutil.rmtree(newest)
    shutil.copytree(before, newest)
    assert last_whole_round(stopped).done == STOPPED - 1
    assert "manifest.json belongs to round 2" in last_whole_round(stopped).problems[0]


@pytest.mark.parametrize("client", [None, 1])
def test_a_manifest_in_the_place_of_another_sealed_file_is_noticed(client: int | None, stopped: RunFolder) -> None:
    swap(stopped.env, stopped.checkpoints / f"round-{STOPPED:05d}" / "manifest.json")
    with pytest.raises(ConfigError, match=r"env\.json differs from what was written"):
        kept_round(stopped, client)


def test_a_run_without_a_whole_checkpoint_stays_as_it_is(stopped: RunFolder, small: Config) -> None:
    for path in stopped.checkpoints.rglob("global.safetensors"):
        flip(path)
    before = contents(stopped)
    with pytest.raises(ConfigError, match="differs from what was written, and no earlier round is intact; rem"):
        experiment.run(small, stopped, lambda summary: None)
    assert contents(stopped) == before


def test_a_run_of_an_earlier_version_resumes_and_is_sealed_from_there_on(
    stopped: RunFolder, whole: RunFolder, small: Config
) -> None:
    experiment.run(small, unseal(stopped), lambda summary: None)
    assert "an earlier version wrote round 3" in stopped.log.read_text()
    assert run_files(stopped).keys() ^ run_files(whole).keys() == {"checkpoints/kept/round-00003/manifest.json"}
    assert sealed_from(stopped) == 4
    assert Checkpoints(stopped.checkpoints).check(4)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "client"), [("global", None), ("manifest", None), ("clients", 0), ("client", -1)])
def test_models_of_a_damaged_checkpoint_are_not_used(
    name: str, client: int | None, damage: str, stopped: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the one before it are, unless the damaged round is asked for."""
    path = newest_files(stopped)[name]
    client = int(path.name[:6]) if client == -1 else client
    DAMAGES[damage](path)
    assert kept_round(stopped, client).server_round == STOPPED - 1
    assert f"{path} " in caplog.text
    with pytest.raises(ConfigError, match="the models of round 3 are lost"):
        kept_round(stopped, client, STOPPED)


def test_barriers_between_damaged_checkpoints_are_not_measured(done: RunFolder) -> None:
    paths = [done.checkpoints / "round-00004" / "global.safetensors", done.checkpoints / "kept/round-00003"]
    flip(paths[0])
    model = fedsim.load(done.path)[0].model(round=3)
    with pytest.raises(ConfigError, match=r"round-00004/global\.safetensors differs from what was written"):
        fedsim.barriers(model, [paths[0], paths[1] / "global.safetensors"], torch.zeros(2, 64), torch.zeros(2).long())


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_part_of_it(
    stopped: RunFolder, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(path: Path, **_: object) -> None:
        if path.exists():
            (path / "global.safetensors").unlink()
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr("fedsim.experiment.checkpoints.shutil.rmtree", kill)
        with pytest.raises(Stop):
            experiment.run(small, stopped, lambda summary: None)
    assert verify(stopped).is_whole
    experiment.run(small, stopped, lambda summary: None)
    assert not list(stopped.checkpoints.glob(".*"))


def test_a_damaged_global_model_of_an_earlier_version_has_another_loss(done: RunFolder) -> None:
    path = Checkpoints(unseal(done).checkpoints).folder / "round-00004" / "global.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40  # the highest bit of an exponent
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"the global model has a loss of .* now, and had "):
        restored_model(done)


def test_a_file_of_a_checkpoint_is_checked_through_a_link_and_without_its_manifest(
    done: RunFolder, tmp_path: Path
) -> None:
    newest = done.checkpoints / "round-00004"
    (tmp_path / "link").symlink_to(newest / "global.safetensors")
    check_file_of_checkpoint(tmp_path / "link")
    flip(newest / "global.safetensors")
    with pytest.raises(ConfigError, match="link differs from what was written"):
        check_file_of_checkpoint(tmp_path / "link")
    (newest / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"manifest\.json is missing"):
        check_file_of_checkpoint(newest / "global.safetensors")
    check_file_of_checkpoint(Path(shutil.copytree(newest, tmp_path / newest.name)) / "global.safetensors")
