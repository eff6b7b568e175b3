"""Which file each client has at a checkpoint: against a dict, and in the form of earlier versions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedsim.experiment.client_files import ClientFiles
from fedsim.federation.engines.state_files import StateFiles


@pytest.mark.parametrize("largest", [6, 1_000_000])
def test_the_files_of_checkpoints_are_those_that_a_dict_would_hold(largest: int, tmp_path: Path) -> None:
    files, rng = StateFiles(tmp_path / "clients"), np.random.default_rng(0)
    files.folder.mkdir()
    every = sorted(rng.choice(largest, 6, replace=False).tolist())
    found, expected, before = ClientFiles(), dict[int, int](), list[ClientFiles]()
    for server_round in range(1, 8):
        took_part = sorted(rng.choice(every, 3, replace=False).tolist())
        for place, client in enumerate(took_part):
            if place:
                files.path(client, server_round).write_bytes(f"{client} {server_round}".encode())
                expected[client] = server_round
            else:  # it keeps nothing any more
                expected.pop(client, None)
        before.append(found)
        found = found.changed(files, took_part, server_round)
        path = tmp_path / "clients.safetensors"
        path.write_bytes(found.encoded())
        assert len(found.encoded()) < 1000
        found = ClientFiles.read(path)
        assert dict(found.pairs()) == expected
        assert found.of_round(server_round) == took_part[1:]
        for seal_of, seal in found.seals(files).items():
            seal.check(seal_of)
        for one in before:
            unused = {pair for pair in one.pairs() if pair not in set(found.pairs())}
            assert set(one.unused_by([ClientFiles(), found])) == unused


def test_a_list_of_earlier_versions_has_an_entry_for_each_client(tmp_path: Path) -> None:
    path = tmp_path / "clients.safetensors"
    hashes = torch.arange(64, dtype=torch.uint8).reshape(2, 32)
    save_file({"rounds": torch.tensor([0, 0, 7, 0, 0, 0, 0, 3]), "hashes": hashes}, path)
    found = ClientFiles.read(path)
    assert list(found.pairs()) == [(2, 7), (7, 3)]
    seals = found.seals(StateFiles(tmp_path), [7])
    assert [seal.sha256 for seal in seals.values()] == [bytes(range(32, 64)).hex()]


def test_empty_files_of_earlier_versions_count_as_none(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    save_file({}, files.path(4, 3))
    save_file({"model/head": torch.ones(1)}, files.path(7, 3))
    path = tmp_path / "clients.safetensors"
    path.write_bytes(ClientFiles().changed(files, [4, 7], 3).encoded())
    found = ClientFiles.read(path)
    assert list(found.pairs()) == [(7, 3)]
    assert list(found.seals(files)) == [files.path(7, 3)]


def test_all_files_but_those_of_checkpoints_are_removed(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    for pair in ((4, 3), (4, 5), (7, 3)):
        files.path(*pair).touch()
    (tmp_path / ".000004-partial").touch()
    files.keep([(4, 5), (7, 3)])
    assert sorted(tmp_path.iterdir()) == [files.path(4, 5), files.path(7, 3)]
    StateFiles(tmp_path / "left out by a copy").keep([])
