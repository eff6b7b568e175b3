"""PFLlib's folders give each client the examples that PFLlib gives it, and nothing that they ask for is called."""

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config import Config
from fedsim.data import DATA
from fedsim.data.checks import check_dataset
from fedsim.errors import ConfigError
from fedsim.federation import data as data_of_runs
from fedsim.federation.data import federated_data_of
from fedsim.federation.pfllib import write_pfllib
from fedsim.federation.split import held_by_server, split_of

NATURAL = {"scheme": "natural", "validation": 0.0}


def pack(path: Path, content: Any) -> None:
    """Write a file as PFLlib's save_file does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, data=content)


def pack_raw(path: Path, pickled: bytes) -> None:
    """Write a file of which NumPy would unpickle these bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    pack(path, 0)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", buffer.getvalue() + pickled)


def generated(folder: Path, make: Callable[[int, int], dict[str, Any]], sizes: Any = ((3, 2), (4, 1), (2, 2))) -> Path:
    """Write the parts of clients, and the configuration, as PFLlib does."""
    for client, counts in enumerate(sizes):
        for part, n in zip(("train", "test"), counts, strict=True):
            pack(folder / part / f"{client}.npz", make(client, n))
    (folder / "config.json").write_text(json.dumps({"num_clients": len(sizes)}))
    return folder


def images(client: int, n: int) -> dict[str, Any]:
    """Return images that name their client and number of examples, of the classes 0 and 1."""
    values = (
        np.full((n, 1, 4, 4), client + n / 10, dtype=np.float32) + np.arange(n, dtype=np.float32)[:, None, None, None]
    )
    return {"x": values, "y": np.arange(n, dtype=np.int64) % 2}


def test_clients_train_and_test_on_what_pfllib_gives_them(tiny: Callable[..., Config], tmp_path: Path) -> None:
    folder = generated(tmp_path / "MNIST", images)
    config = tiny(data={"name": "pfllib", "path": str(folder)}, partition=NATURAL, clients=3)
    data = federated_data_of(config)
    every = []
    for client in range(3):
        for part in ("train", "test"):
            with (folder / part / f"{client}.npz").open("rb") as file:
                known = np.load(file, allow_pickle=True)["data"].tolist()  # as PFLlib's read_data does
            inputs, targets = getattr(data.client(client), part)
            order = inputs[:, 0, 0, 0].argsort()
            assert torch.equal(inputs[order], torch.Tensor(known["x"]))
            assert torch.equal(targets[order], torch.Tensor(known["y"]).long())
            every += [known] if part == "test" else []
    inputs, targets = data.test()
    assert torch.equal(inputs, torch.Tensor(np.concatenate([each["x"] for each in every])))
    assert torch.equal(targets, torch.Tensor(np.concatenate([each["y"] for each in every])).long())
    validated = federated_data_of(
        config.model_copy(update={"partition": config.partition.model_copy(update={"validation": 0.3})})
    )
    assert validated.split.validation.sizes.tolist() == [2, 2, 1]  # of the training examples, as many as of all
    assert np.array_equal(np.sort(validated.split.test.indices), np.sort(data.split.test.indices))


def test_what_is_exported_for_pfllib_is_read_back(tiny: Callable[..., Config], tmp_path: Path) -> None:
    before = federated_data_of(tiny(partition__validation=0.0))
    write_pfllib(before, tmp_path / "out")
    after = federated_data_of(tiny(data={"name": "pfllib", "path": str(tmp_path / "out")}, partition=NATURAL))
    for client in range(4):
        for part in ("train", "test"):
            (x, y), (own, labels) = getattr(before.client(client), part), getattr(after.client(client), part)
            found = sorted(zip(own.flatten(1).tolist(), labels.tolist(), strict=True))
            assert found == sorted(zip(x.flatten(1).tolist(), y.tolist(), strict=True))


@pytest.mark.parametrize(("name", "task"), [("toy-text", "next-token"), ("arrays", "regression")])
def test_targets_that_pfllib_would_round_are_not_exported(
    name: str, task: str, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    data: dict[str, Any] = {"name": name}
    if name == "arrays":
        values = np.linspace(0, 1, 40, dtype=np.float32)
        rows = {"inputs": values[:, None], "targets": values}
        np.savez(tmp_path / "rows.npz", **{f"{part}_{what}": rows[what] for part in ("train", "test") for what in rows})
        data["path"] = str(tmp_path / "rows.npz")
    found = federated_data_of(tiny(data=data, partition={"scheme": "iid"}))
    with pytest.raises(ConfigError, match=f"has the task '{task}' and .*; leave --pfllib out"):
        write_pfllib(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def matrix(rows: list) -> Any:
    """Return what a sparse matrix becomes by ``todense``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.matrix(rows, dtype=np.float32)


@pytest.mark.parametrize(
    ("x", "tokens", "shape"),
    [
        (np.array([([5, 2, 0], 2), ([1, 6, 2], 3)], dtype=object), 7, (3,)),  # AG News: tokens and their number
        (np.array([[5, 2, 0], [1, 6, 2]]), 7, (3,)),  # Shakespeare
        (np.ones((2, 9, 1, 128)), 0, (9, 1, 128)),  # HAR
        (matrix([[1.0, 0.0], [0.0, 1.0]]), 0, (2,)),  # Amazon Review
        ([[1.5, 0.0], [0.0, 1.0]], 0, (2,)),
        (np.arange(2 * 12).reshape(2, 3, 2, 2), 0, (3, 2, 2)),
    ],
)
def test_every_kind_of_pfllibs_inputs_is_read(x: Any, tokens: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    data = DATA["pfllib"](path=str(generated(tmp_path, lambda client, n: {"x": x, "y": [0.0, 1.0]}, [(2, 2)])))
    check_dataset(data)
    assert (data.tokens, data.shape, data.classes) == (tokens, shape, ("0", "1"))
    known = np.array([row[0] for row in x]) if tokens and x.dtype == object else np.asarray(x)
    assert np.array_equal(data.train.inputs[:2].numpy(), known)
    assert torch.equal(data.normalise(data.train.inputs), data.train.inputs)


class Evil:
    """Calls a function as it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("protocol", [3, 4])  # NumPy has used these since 1.17
def test_nothing_that_a_file_asks_for_is_called(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = generated(tmp_path, images)
    content = images(1, 4) | {"z": Evil()}
    pack_raw(folder / "train" / "1.npz", pickle.dumps(np.array(content, dtype=object), protocol))
    with pytest.raises(
        ValueError,
        match=r"train/1\.npz is damaged or not in PFLlib's format \(it asks for (posix|nt).mkdir, .*; generate",
    ):
        DATA["pfllib"](path=str(folder))
    assert not Path("evil").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train has no file 0\.npz; PFLlib's generate_"):
        DATA["pfllib"](path=str(tmp_path))
    folder = generated(tmp_path, images)
    for content, message in (
        ({"x": np.ones((2, 3))}, "no 'y'"),
        ({"x": np.ones((2, 3)), "y": [0]}, "it has 2 inputs and 1 targets"),
        ({"x": np.ones((2, 3)), "y": [0, 0.5]}, "its targets are not whole numbers"),
        ([1, 2], r"its data are int64 of shape \(2,\), not a dict"),
        (np.array("x", dtype=object), "its data are str, not a dict"),
    ):
        pack(folder / "train" / "0.npz", content)
        with pytest.raises(
            ValueError, match=rf"train/0\.npz is damaged or not in PFLlib's format \({message}.*; generate"
        ):
            DATA["pfllib"](path=str(folder))
    pack(folder / "train" / "0.npz", {"x": np.ones((2, 3)), "y": [0, 1]})
    with pytest.raises(ValueError, match=r"inputs of the clients are float32 of shape \(1, 4, 4\) and .* \(3,\); they"):
        DATA["pfllib"](path=str(folder))
    generated(tmp_path, images)
    (folder / "config.json").write_text('{"num_clients": 2}')
    with pytest.raises(ValueError, match=r"has files of 3 clients, and config\.json is of 2; remove"):
        DATA["pfllib"](path=str(folder))
    (folder / "test" / "2.npz").unlink()
    with pytest.raises(ValueError, match=r"has no test/2\.npz, and client 2 has other examples"):
        DATA["pfllib"](path=str(folder))
    (folder / "train" / "2.npz").unlink()
    assert len(DATA["pfllib"](path=str(folder)).train) == 10
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        DATA["pfllib"](path=str(folder))


def test_no_partition_trains_on_what_is_held_out_for_tests(tiny: Callable[..., Config], tmp_path: Path) -> None:
    folder = generated(tmp_path, images, [(30, 20), (40, 10)])

    def config(**partition: Any) -> Config:
        data = {"name": "pfllib", "path": str(folder), "server_examples": 30}
        return tiny(data=data, partition={"scheme": "iid", **partition}, clients=2)

    data = federated_data_of(config())
    held = data.dataset.held_out
    assert [held[each.indices].mean() for each in data.split.parts] == [0, 0, 1]
    assert not held[held_by_server(data.config, data.dataset)].any()
    assert data.split.test.sizes.sum() == 30
    for changes, message in (
        (
            {"test": 0.3},
            "partition.test = 0.3 does not apply to .*, which itself says what clients are tested on; remo",
        ),
        ({"test_skew": "uniform"}, "partition.test_skew = 'uniform' does not apply"),
    ):
        with pytest.raises(ConfigError, match=message):
            federated_data_of(config(**changes))
    everywhere = replace(data.dataset, held_out=np.zeros(0, dtype=bool))
    split_of(data.config, everywhere).save(tmp_path / "split.npz", everywhere.labels)
    saved = tiny(
        data={"name": "pfllib", "path": str(folder)},
        partition={"scheme": "saved", "path": str(tmp_path / "split.npz")},
        clients=2,
    )
    with pytest.raises(ConfigError, match=r"'saved' lets clients train or validate on examples that .* holds out"):
        federated_data_of(saved)
    few = replace(data.dataset, held_out=np.arange(100) == 99)
    with pytest.raises(ConfigError, match=r"client \d has none of the examples of .* that are held out for tests"):
        split_of(config(), few)
    data_of_runs._read.cache_clear()


@pytest.mark.parametrize("marks", [[True, False], np.zeros(10), np.zeros(3, dtype=bool), np.ones(14, dtype=bool)])
def test_marks_that_do_not_fit_are_refused(marks: Any, tmp_path: Path) -> None:
    data = DATA["pfllib"](path=str(generated(tmp_path, images)))
    with pytest.raises(ValueError, match=r"give a NumPy array of booleans, shape \(14,\)|leave some to train on"):
        check_dataset(replace(data, held_out=marks))
