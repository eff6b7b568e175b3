"""Damage of any file of a run is noticed: when it resumes, and when its results are read."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedsim.config import Config, naming
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.beginning import beginning_of, last_whole_round
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.federation.federation import Federation, federation_of
from fedsim.results.files import json_text, keep_rounds, read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_run
from fedsim.results.partition_file import read_partition
from fedsim.results.reading import find_runs, read_result
from fedsim.results.seals import hash_of, read_sealed, seal_of, write_sealed
from tests.conftest import run_files, unseal
from tests.experiment.conftest import STOPPED
from tests.experiment.damage import DAMAGES, contents, damaged, flip, lengthen, sealed_files, swap

SETTINGS = ("config.toml", "model.json", "participants.json", "partition.parquet")
ROWS = ("metrics.jsonl", "communication.jsonl", "variances.jsonl", "seals.jsonl", "timing.jsonl")
RECORDS = (*ROWS, "barriers/round-00002.parquet")
OF_THE_RUN = (*SETTINGS, *RECORDS, "env.json")


@pytest.fixture(scope="module")
def federation(small: Config) -> Federation:
    return federation_of(small)


def test_all_files_of_a_run_are_tried_here(done: RunFolder) -> None:
    names = {str(path.relative_to(done.path)) for path in sealed_files(done)}
    assert {name for name in names if not name.startswith("checkpoints/")} == {
        *OF_THE_RUN,
        "DONE",
        "barriers/round-00004.parquet",
    } | {name for name in names if name.startswith("distances/")}


@pytest.mark.parametrize("damage", [*DAMAGES, "lengthen"])
def test_results_of_a_run_with_a_damaged_file_are_not_read(damage: str, done: RunFolder) -> None:
    for name in (*OF_THE_RUN, "DONE", "barriers/round-00004.parquet"):
        if (name, damage) == ("DONE", "delete"):
            continue  # a run that is not done, which resumes
        path = done.path / name
        with damaged(path, (DAMAGES | {"lengthen": lengthen})[damage]), pytest.raises(ConfigError) as caught:
            read_result(done)
        assert str(caught.value).startswith(f"{path} ")
        assert "remove " in str(caught.value)
    assert check_run(done)


@pytest.mark.parametrize("where", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_one_bit_anywhere_is_enough(where: float, done: RunFolder) -> None:
    for name in (*OF_THE_RUN, "DONE"):
        with damaged(done.path / name, partial(flip, where=where)), pytest.raises(ConfigError, match=name):
            check_run(done)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RECORDS)
def test_a_run_whose_records_are_damaged_does_not_resume_after_them(
    name: str, damage: str, stopped: RunFolder, small: Config
) -> None:
    path = stopped.path / name
    DAMAGES[damage](path)
    before = contents(stopped)
    if name == "timing.jsonl" and damage in ("flip", "cut"):  # its first row is whole
        assert last_whole_round(stopped).done == STOPPED - 1
        return
    with pytest.raises(ConfigError) as caught:
        experiment.run(small, stopped, lambda summary: None)
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).endswith("; remove the run's folder to start it again")
    assert contents(stopped) == before


def test_a_run_whose_newest_records_are_damaged_resumes_before_them(
    stopped: RunFolder, whole: RunFolder, small: Config, caplog: pytest.LogCaptureFixture
) -> None:
    flip(stopped.metrics, 1.0)
    experiment.run(small, stopped, lambda summary: None)
    where = "metrics.jsonl differs from what was written, from round 3 on; the run resumes after round 2 instead"
    assert where in caplog.text
    assert run_files(stopped) == run_files(whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_settings_that_are_damaged_are_written_again(damage: str, stopped: RunFolder, federation: Federation) -> None:
    """They follow from the experiment's file."""
    for name in SETTINGS:
        with damaged(stopped.path / name, DAMAGES[damage]):
            with pytest.raises(ConfigError, match=name):
                check_run(stopped)
            begin = beginning_of(stopped, federation)
        assert begin.done == STOPPED
        assert f"{name} " in begin.problems[0]
        assert begin.problems[0].endswith("; it is written again")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_env_is_damaged_is_refused_in_one_line(damage: str, stopped: RunFolder, small: Config) -> None:
    DAMAGES[damage](stopped.env)
    for use in (lambda: experiment.run(small, stopped, lambda summary: None), lambda: read_result(stopped)):
        with pytest.raises(ConfigError, match=r"env\.json (is|has)"):
            use()


@pytest.mark.parametrize(("one", "other"), [("metrics", "communication"), ("model", "partition"), ("env", "config")])
def test_files_that_are_swapped_are_noticed(one: str, other: str, done: RunFolder) -> None:
    swap(getattr(done, one), getattr(done, other))
    with pytest.raises(ConfigError, match=r"written|damaged"):
        read_result(done)


@pytest.mark.parametrize("name", ["DONE", *(name for name in OF_THE_RUN if name != "model.json")])  # which is the same
def test_a_file_of_another_run_is_noticed(name: str, done: RunFolder, other: RunFolder) -> None:
    shutil.copy(other.path / name, done.path / name)
    with pytest.raises(ConfigError, match=r"\.(toml|json|jsonl|parquet) (has|differs)"):
        read_result(done)


def test_an_env_of_another_run_is_noticed_before_the_end(stopped: RunFolder, other: RunFolder) -> None:
    shutil.copy(other.env, stopped.env)
    with pytest.raises(ConfigError, match=r"env\.json belongs to another run"):
        last_whole_round(stopped)


def as_json(folder: RunFolder) -> None:
    """Let a run have its partition in the file of earlier versions, and the seal of that."""
    measured = read_partition(folder)
    rows = zip(measured.counts.offsets[:-1], measured.counts.offsets[1:], strict=True)
    held = [
        {str(k): int(n) for k, n in zip(measured.counts.labels[a:b], measured.counts.counts[a:b], strict=True)}
        for a, b in rows
    ]
    content = {"classes": list(measured.classes), "sizes": measured.sizes.tolist(), "label_counts": held}
    folder.partition_json.write_text(json_text(content))
    folder.partition.unlink()
    env = folder.read_env()
    for start in env["starts"]:
        start["files"][folder.partition_json.name] = seal_of(folder.partition_json).sha256
        del start["files"][folder.partition.name]
    folder.write_env(env)
    for manifest in folder.manifests().values():
        starts = env["starts"][: read_sealed(manifest)["starts"]["count"]]
        sealed = {"count": len(starts), "sha256": hash_of(starts)}
        write_sealed(manifest, {**read_sealed(manifest), "starts": sealed})


def test_a_run_whose_partition_an_earlier_version_wrote_resumes(
    stopped: RunFolder, whole: RunFolder, small: Config
) -> None:
    expected = read_result(stopped).heterogeneity
    as_json(stopped)
    found = read_result(stopped).heterogeneity
    assert np.array_equal(found.counts.counts, expected.counts.counts)
    assert np.array_equal(found.sizes, expected.sizes)
    DAMAGES["flip"](stopped.partition_json)
    with pytest.raises(ConfigError, match=r"partition\.json differs from what was written"):
        read_result(stopped)
    experiment.run(small, stopped, lambda summary: None)
    assert not stopped.partition_json.exists()
    assert run_files(stopped) == run_files(whole)


def test_rows_that_follow_the_last_checkpoint_are_cut(stopped: RunFolder, whole: RunFolder, small: Config) -> None:
    for path in (stopped.metrics, stopped.communication, stopped.seals, stopped.timing):
        with path.open("a") as file:
            file.write('{"round": 4}\n{"round": 4, "cli')
    experiment.run(small, stopped, lambda summary: None)
    assert run_files(stopped) == run_files(whole)
    assert read_rows(stopped.timing)["round"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("line", ['{"round": 4}', '{"round": 4, "files": [], "tables": 3}', "7", '{"files": {"a": 1}}'])
def test_a_line_of_seals_that_is_none_is_noticed(line: str, stopped: RunFolder) -> None:
    """Also after the last checkpoint, which seals the lines before."""
    with stopped.seals.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ConfigError, match=r"seals\.jsonl differs from what was written; 'fedsim run' resumes"):
        read_result(stopped)


def test_the_timing_of_a_round_that_is_there_twice_is_noticed(stopped: RunFolder, small: Config) -> None:
    lengthen(stopped.timing)
    with pytest.raises(ConfigError, match=r"timing\.jsonl (has a round twice|is damaged in line)"):
        read_result(stopped)
    experiment.run(small, stopped, lambda summary: None)
    assert read_rows(stopped.timing)["round"].tolist() == [1, 2, 3, 4]


def test_a_table_that_the_run_did_not_write_is_noticed(done: RunFolder) -> None:
    table = done.measured("barriers", 2)
    table.with_name("round-00003.parquet").write_bytes(table.read_bytes())
    with pytest.raises(ConfigError, match=r"round-00003\.parquet was not written by this run"):
        read_result(done)


def test_a_run_under_the_name_of_another_is_neither_skipped_nor_resumed(
    stopped: RunFolder, whole: RunFolder, small: Config, tmp_path: Path
) -> None:
    """Their folders were swapped, or one was copied to the place of the other."""
    [run] = name_runs([small.model_copy(update={"seed": 1})], tmp_path / "out")
    for folder in (stopped, whole):
        shutil.copytree(folder.path, run.folder.path)
        before = contents(run.folder)
        with pytest.raises(ConfigError, match=rf"holds the run {naming.run_name(small)}; give it that name again, or"):
            beginning_of(run.folder, federation_of(run.config))
        assert contents(run.folder) == before
        if folder is whole:
            with pytest.raises(ConfigError, match=f"holds the run {naming.run_name(small)}"):
                run_all([run])
        shutil.rmtree(run.folder.path)


def test_a_run_that_has_lost_its_config_is_not_left_out(done: RunFolder) -> None:
    done.config.unlink()
    assert find_runs([done.path.parent]) == [done]


def test_runs_of_earlier_versions_are_read(done: RunFolder) -> None:
    assert not check_run(unseal(done))
    assert read_result(done).evaluated == 4


@pytest.mark.parametrize("name", ["metrics", "communication", "timing"])
def test_rounds_that_are_missing_from_a_run_of_an_earlier_version_are_noticed(name: str, done: RunFolder) -> None:
    path: Path = getattr(unseal(done), name)
    keep_rounds(path, 2)
    with pytest.raises(ConfigError, match=rf"{path.name} has no rows of round [34]; remove the run's folder and run"):
        check_run(done)
    with pytest.raises(ConfigError, match=rf"{path.name} has no rows of round [34], and no earlier round is int"):
        last_whole_round(unseal(done))


def test_a_round_whose_timing_a_kill_prevented_in_an_earlier_version_is_fine(stopped: RunFolder) -> None:
    keep_rounds(unseal(stopped).timing, 2)
    assert not check_run(stopped)
    assert last_whole_round(stopped).done == STOPPED


def test_a_run_without_any_seal_is_not_taken_for_one_of_an_earlier_version(stopped: RunFolder) -> None:
    for path in [stopped.seals, *stopped.checkpoints.rglob("manifest.json")]:
        path.unlink()
    with pytest.raises(ConfigError, match=r"seals\.jsonl is missing"):
        check_run(stopped)
    with pytest.raises(ConfigError, match=r"manifest\.json is missing, and no earlier round is intact"):
        last_whole_round(stopped)


def test_settings_of_an_earlier_version_do_not_pass_for_those_of_a_sealed_run(stopped: RunFolder) -> None:
    stopped.env.write_text("{}")
    with pytest.raises(ConfigError, match=r"env\.json belongs to another run"):
        check_run(stopped)
    with pytest.raises(ConfigError, match=r"env\.json belongs to another run"):
        last_whole_round(stopped)


def test_a_damaged_mark_of_a_run_that_is_done_is_written_again(done: RunFolder) -> None:
    flip(done.done)
    with pytest.raises(ConfigError, match=r"DONE .*; remove it, and the same command completes the run again"):
        check_run(done)
    Path.unlink(done.done)
    experiment.complete(done)
    assert check_run(done)


def test_a_run_that_another_command_has_finished_stays_as_it_is(small: Config, done: RunFolder) -> None:
    experiment.run(small, done, lambda summary: None)  # as when it was planned before the other one ended
    assert check_run(done)


def test_a_run_is_read_while_it_is_running(small: Config, tmp_path: Path) -> None:
    folder, rounds = RunFolder(tmp_path / "run"), []
    experiment.run(
        small.model_copy(update={"checkpoint_every": 3}), folder, lambda summary: rounds.append(read_result(folder))
    )
    assert [result.evaluated for result in rounds] == [1, 2, 3, 4]
