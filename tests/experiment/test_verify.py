"""`fedsim verify` finds every damage in a run's folder, and what differs first when rounds are run again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from fedsim.errors import ConfigError
from fedsim.experiment.verifying.replay import replay
from fedsim.experiment.verifying.verify import verify
from fedsim.results.folder import RunFolder
from tests.conftest import Command, unseal
from tests.experiment.damage import DAMAGES, contents, damaged, flip, sealed_files


@pytest.mark.parametrize("kind", ["done", "stopped"])
def test_a_run_that_nobody_has_touched_is_whole(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    before = contents(folder)
    verdict = verify(folder)
    assert verdict.is_whole
    assert not verdict.notes
    state, rounds = ("done", 4) if kind == "done" else ("'fedsim run' resumes it", 3)
    assert verdict.summary.startswith(f"{rounds} rounds of 4, {state}; ")
    assert f"2 checkpoints ({rounds - 1}, {rounds}), " in verdict.summary
    assert contents(folder) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["done", "stopped"])
def test_damage_of_any_file_is_named(kind: str, damage: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    for path in sealed_files(folder):
        if (path, damage) == (folder.done, "delete"):
            continue  # which leaves a run that resumes
        with damaged(path, DAMAGES[damage]):
            problems = verify(folder).problems
        assert any(str(path) in problem for problem in problems), (path, problems)
    assert verify(folder).is_whole


def test_what_else_is_wrong_is_named(done: RunFolder) -> None:
    shutil.rmtree(done.checkpoints / "kept")
    named = RunFolder(done.path.rename(done.path.with_name("12345678-s0")))
    lost, name = verify(named).problems
    assert lost == f"{named.checkpoints} has lost the checkpoint of round 3"
    assert name.startswith(f"{named.config} belongs to ")


def test_a_stopped_run_without_its_checkpoints_is_named(stopped: RunFolder) -> None:
    shutil.rmtree(stopped.checkpoints)
    assert f"{stopped.checkpoints} has lost the checkpoint of round 3" in verify(stopped).problems


def test_a_run_of_an_earlier_version_is_read_with_a_note(done: RunFolder) -> None:
    verdict = verify(unseal(done))
    assert verdict.is_whole
    assert verdict.notes == ["an earlier version wrote it without seals, so that only what is missing is noticed"]


def test_a_run_under_way_is_not_verified(stopped: RunFolder) -> None:
    with FileLock(stopped.lock), pytest.raises(ConfigError, match="in use by its run"):
        verify(stopped)


@pytest.mark.parametrize(("rounds", "first", "last"), [(1, 4, 4), (2, 1, 2), (4, 1, 4)])
def test_rounds_that_are_run_again_have_the_same_bytes(rounds: int, first: int, last: int, done: RunFolder) -> None:
    before = contents(done)
    found = replay(done, rounds)
    assert (found.first, found.last, found.has_checkpoint) == (first, last, last == 4)
    assert found.difference is None
    assert not found.notes
    assert contents(done) == before


def change_row(path: Path, **changes: Any) -> None:
    """Change the last row of a client."""
    lines = path.read_text().splitlines(keepends=True)
    at = max(k for k, line in enumerate(lines) if json.loads(line).get("client") is not None)
    lines[at] = json.dumps(json.loads(lines[at]) | changes) + "\n"
    path.write_text("".join(lines))


def as_earlier(path: Path, name: str, change: int = 0) -> None:
    """Let a file of rounds by client list all clients up to the last, or what it lists already, with other rounds."""
    held = load_file(path)
    rounds = held[name] + change
    if "clients" in held:
        rounds = torch.zeros(int(held["clients"][-1]) + 3, dtype=torch.int64).scatter(0, held.pop("clients"), rounds)
    save_file(held | {name: rounds}, path)


DIFFERENCES: dict[str, tuple[Callable[[RunFolder], Any], str]] = {
    "a value": (
        lambda folder: change_row(folder.metrics, value=0.25),
        r"metrics\.jsonl, client 3, .*: value was 0\.25",
    ),
    "bytes": (lambda folder: change_row(folder.communication, up=1), r"communication\.jsonl, client \d, .*: up was 1 "),
    "a table": (lambda folder: flip(folder.measured("barriers", 4)), r"barriers/round-00004\.parquet: has other bytes"),
    "a model": (
        lambda folder: flip(folder.checkpoints / "round-00004" / "global.safetensors"),
        r"round-00004/global\.safetensors: has other bytes",
    ),
    "a client's round": (
        lambda folder: as_earlier(folder.checkpoints / "round-00004" / "progress.safetensors", "last_round", 1),
        r"round-00004/progress\.safetensors: has other bytes",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_first_difference_is_named(name: str, done: RunFolder) -> None:
    """Nothing seals these records, so that only their numbers tell."""
    change, expected = DIFFERENCES[name]
    change(unseal(done))
    found = replay(done, 1).difference
    assert re.match(f"round 4, {expected}", found or ""), found


def test_a_list_of_all_clients_as_earlier_versions_wrote_it_is_the_same(
    stopped: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever form a file has, the other one holds the same rounds."""
    unseal(stopped)
    for name, key in (("clients.safetensors", "rounds"), ("progress.safetensors", "last_round")):
        path = stopped.checkpoints / "round-00003" / name
        held = load_file(path)
        if "clients" in held:
            as_earlier(path, key)
        else:
            clients = held[key].nonzero().flatten()
            save_file(held | {"clients": clients, key: held[key][clients]}, path)
    assert replay(stopped, 1).difference is None


def test_a_run_of_another_device_or_version_is_said_to_differ(done: RunFolder) -> None:
    unseal(done).env.write_text(json.dumps(done.read_env() | {"device": "a GPU", "fedsim": "0.0.9"}))
    version, device = replay(done, 1).notes
    assert version.startswith("it was run with fedsim 0.0.9 (now ")
    assert device == "only on CPUs are the bytes always the same"


def test_more_rounds_than_there_are_cannot_be_run_again(stopped: RunFolder) -> None:
    with pytest.raises(ConfigError, match="--replay 4 must be from 1 to 3, the rounds that"):
        replay(stopped, 4)


def test_the_command_prints_a_verdict_first_and_says_it_by_its_exit_code(done: RunFolder, command: Command) -> None:
    code, out, _ = command("verify", done.path, "--replay", 1)
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith(f"whole    {done.path}: 4 rounds of 4, done; ")
    assert second == "same     round 4 run again: records and the checkpoint of round 4 are equal, byte for byte"
    flip(done.metrics)
    done.participants.unlink()
    code, out, _ = command("verify", done.path, "--replay", 1)
    assert code == 1
    first, *others = out.splitlines()
    assert first.startswith(f"DAMAGED  {done.path}: ")
    assert len(others) == 2
    assert any(line.startswith(f"         {done.metrics} differs from what was written") for line in others)
    assert f"         {done.participants} is missing" in others
