"""CIFAR and SVHN from small files written as the published ones are; only their checksums are put in place."""

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from fedsim.data import DATA

LOADERS: dict[str, Any] = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, loader: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a folder and its archive in CIFAR's format: pickled dicts, an image a row of reds, greens, blues."""
    folder = root / loader.base_folder
    folder.mkdir(parents=True)
    classes = 10 if loader is CIFAR10 else 100
    labels = "labels" if loader is CIFAR10 else "fine_labels"

    def write(name: str, content: dict) -> None:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))

    lists = {}
    for part in ("train_list", "test_list"):
        for name, _ in getattr(loader, part):
            targets = np.arange(classes)
            rows = np.zeros((classes, 3072), dtype=np.uint8)
            rows[:, :1024], rows[:, 2048:] = targets[:, None], 200
            rows[:, 1] = 99  # the second pixel of the first row
            write(name, {"data": rows, labels: targets.tolist(), "filenames": []})
        lists[part] = [[name, md5(folder / name)] for name, _ in getattr(loader, part)]
        monkeypatch.setattr(loader, part, lists[part])
    meta = loader.meta
    write(meta["filename"], {meta["key"]: [f"thing {label}" for label in range(classes)]})
    monkeypatch.setattr(loader, "meta", meta | {"md5": md5(folder / meta["filename"])})
    archive = root / loader.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, loader.base_folder)
    monkeypatch.setattr(loader, "tgz_md5", md5(archive))
    return archive


@pytest.mark.parametrize("place", ["folder", "parent", "archive", "environment"])
@pytest.mark.parametrize("name", LOADERS)
def test_cifar_is_read_from_its_folder_and_from_its_archive(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_cifar(tmp_path, LOADERS[name], monkeypatch)
    folder = tmp_path / LOADERS[name].base_folder
    if place == "archive":
        shutil.rmtree(folder)
    elif place == "environment":
        monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    options = {"folder": {"data_dir": str(folder)}, "environment": {}}.get(place, {"data_dir": str(archive.parent)})
    data = DATA[name](**options)
    classes = len(data.classes)
    assert classes == {"cifar10": 10, "cifar100": 100}[name]
    assert (len(data.train), len(data.test)) == (classes * len(LOADERS[name].train_list), classes)
    assert data.shape == (3, 32, 32)
    image = data.train.inputs[3]
    assert image[:, 0, 0].tolist() == [3, 0, 200]
    assert image[0, 0, 1] == 99
    assert image[0, 1, 0] == 3
    assert data.train.targets[:4].tolist() == [0, 1, 2, 3]


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_cifar(tmp_path, CIFAR10, monkeypatch)
    shutil.rmtree(tmp_path / CIFAR10.base_folder)
    DATA["cifar10"](data_dir=str(tmp_path))
    archive.write_bytes(b"not looked at again")
    assert len(DATA["cifar10"](data_dir=str(tmp_path)).test) == 10


def test_a_file_with_a_wrong_checksum_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_cifar(tmp_path, CIFAR10, monkeypatch)
    batch = tmp_path / CIFAR10.base_folder / "data_batch_4"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(ValueError, match="data_batch_4 does not have the checksum"):
        DATA["cifar10"](data_dir=str(tmp_path))
    batch.unlink()
    with pytest.raises(ValueError, match="data_batch_4 is missing"):
        DATA["cifar10"](data_dir=str(tmp_path))
    shutil.rmtree(batch.parent)
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz does not have the checksum"):
        DATA["cifar10"](data_dir=str(tmp_path))


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write SVHN's MATLAB files: images [32, 32, 3, n], labels [n, 1] with 10 for the digit 0."""
    folder.mkdir(parents=True)
    labels = np.arange(1, 11, dtype=np.uint8)[:, None]
    images = np.zeros((32, 32, 3, 10), dtype=np.uint8)
    images[0, 1, 2] = labels[:, 0]
    splits = {}
    for split in ("train", "test"):
        url, name, _ = SVHN.split_list[split]
        savemat(folder / name, {"X": images, "y": labels})
        splits[split] = [url, name, md5(folder / name)]
    monkeypatch.setattr(SVHN, "split_list", splits)


def test_svhn_is_read_and_a_ten_is_a_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path / "svhn", monkeypatch)
    data = DATA["svhn"](data_dir=str(tmp_path))
    assert data.train.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert data.train.inputs[:, 2, 0, 1].tolist() == list(range(1, 11))
    path = tmp_path / "svhn" / "test_32x32.mat"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"test_32x32.mat does not have the checksum"):
        DATA["svhn"](data_dir=str(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=r"test_32x32.mat is missing"):
        DATA["svhn"](data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_without_files_and_network_the_message_says_where_they_may_lie(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    loader = LOADERS.get(name, SVHN)
    monkeypatch.setattr(loader, "download", no_network)
    with pytest.raises(FileNotFoundError, match=rf"{name} was not found and the download failed \(no network\); give"):
        DATA[name]()
    with pytest.raises(FileNotFoundError, match=rf"data_dir = '/nowhere' does not hold {name}"):
        DATA[name](data_dir="/nowhere")
