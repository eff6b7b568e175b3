"""Clients' states stay the same whether they are in memory, on disk or in a checkpoint."""

from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from safetensors import SafetensorError

from fedsim.federation.engines.state_files import StateFiles
from fedsim.federation.engines.states import States
from fedsim.memory import TENSOR_BYTES
from fedsim.strategy.messages import decode, encode


def state(value: float) -> RecordDict:
    return RecordDict(
        {"model": encode({"w": torch.full((4,), float(value))}), "momentum": encode({"w": torch.ones(2)})}
    )


def value_of(states: States, client: int) -> float | None:
    held = states[client]
    return decode(held.array_records["model"])["w"][0].item() if held else None


@pytest.mark.parametrize("cache_bytes", [0, 24, 60, 10**6])
def test_states_are_what_they_were_set_to_whatever_fits_in_memory(cache_bytes: int) -> None:
    states = States(cache_bytes)
    for client in range(6):
        states[client] = state(client)
    states[2] = state(20)
    states[4] = RecordDict()
    assert [value_of(states, client) for client in range(7)] == [0, 1, 20, 3, None, 5, None]


def test_memory_holds_the_states_that_were_used_last_and_no_more_than_its_bytes() -> None:
    size = 24 + 2 * TENSOR_BYTES  # a state has four and two float32 numbers
    states = States(2 * size)
    for client in (0, 1, 2):
        states[client] = state(client)
    assert states.held == [1, 2]
    assert value_of(states, 1) == 1
    assert value_of(states, 0) == 0
    assert states.held == [1, 0]
    assert states.held_bytes == 2 * size


def test_a_state_with_other_than_arrays_is_never_put_on_disk() -> None:
    states = States(0)
    states[0] = RecordDict({"seen": ConfigRecord({"rounds": 3})})
    states[1], states[2] = state(1), state(2)
    assert states[0]["seen"] == ConfigRecord({"rounds": 3})


def test_changing_a_state_that_was_read_changes_nothing_until_it_is_set() -> None:
    states = States(10**6)
    states[0] = state(1)
    changed = states[0]
    changed.array_records["model"]["w"] = state(7).array_records["model"]["w"]
    del changed["momentum"]
    assert value_of(states, 0) == 1
    assert set(states[0]) == {"model", "momentum"}
    states[0] = changed
    assert value_of(states, 0) == 7
    assert set(states[0]) == {"model"}


@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_a_checkpoint_holds_each_state_of_its_round(tmp_path: Path, cache_bytes: int) -> None:
    states = States(cache_bytes)
    for client in range(3):
        states[client] = state(client)
    states.save(tmp_path, [0, 1, 2, 9], 4)
    states[1] = state(10)
    states.save(tmp_path, [1], 5)
    names = [StateFiles(tmp_path).path(client, saved).name for client, saved in ((0, 4), (1, 4), (1, 5), (2, 4))]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    again = States(cache_bytes)
    again[2] = state(30)
    again.load(tmp_path, {0: 4, 1: 5, 2: 4})
    assert [value_of(again, client) for client in range(3)] == [0, 10, 2]
    again.load(tmp_path, {1: 4})
    assert value_of(again, 1) == 1


def test_a_state_that_was_read_from_a_checkpoint_is_not_written_a_second_time(tmp_path: Path) -> None:
    states = States(24)
    states[0] = state(1)
    states.save(tmp_path, [0], 1)
    states[0] = states[0]  # as a client that changed nothing leaves it
    states[1], states[2] = state(2), state(3)
    assert value_of(states, 0) == 1
    assert states.file_of(0) == StateFiles(tmp_path).path(0, 1)


def test_a_damaged_or_missing_file_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    states = States(0)
    states[0] = state(1)
    states.save(tmp_path, [0], 1)
    with pytest.raises(OSError, match="No such file"):
        states.load(tmp_path, {0: 2})
    path = StateFiles(tmp_path).path(0, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        states.load(tmp_path, {0: 1})
