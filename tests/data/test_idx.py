import gzip
import importlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data import DATA
from fedsim.data.fashion_mnist import DEBIAN_FOLDER, fashion_mnist
from fedsim.data.idx import read_idx, read_split

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 9], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    """Write the IDX format as its specification says, without using the reader's code."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return tmp_path


def test_idx_files_are_read_plain_and_gzipped(folder: Path) -> None:
    examples = read_split(folder, "train", 10)
    assert examples.inputs[:, 0].tolist() == IMAGES.tolist()
    assert examples.inputs.dtype == torch.uint8
    assert examples.targets.tolist() == [2, 0, 9]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def swap_images_and_labels(path: Path) -> None:
    path.write_bytes(idx(LABELS if "images" in path.name else IMAGES))


def cut_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6])


@pytest.mark.parametrize("damage", [truncate, swap_images_and_labels, cut_the_header])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_damaged_file_is_named(folder: Path, damage: Callable[[Path], None], name: str) -> None:
    path = folder / name
    path.write_bytes(idx(IMAGES if "images" in name else LABELS))
    damage(path)
    with pytest.raises(ValueError, match=name):
        read_split(folder, "train", 10)


def test_a_truncated_gzip_file_is_named(folder: Path) -> None:
    truncate(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be unpacked"):
        read_split(folder, "train", 10)


def test_trailing_bytes_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(idx(LABELS) + b"\0")
    with pytest.raises(ValueError, match="holds 4 bytes of data, but its header promises 3"):
        read_idx(path, 1)


def test_images_and_labels_must_be_equally_many(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    with pytest.raises(ValueError, match=r"has 3 images but .* has 2 labels"):
        read_split(folder, "train", 10)


def test_labels_out_of_range_are_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="has labels from 0 to 9; they must be from 0 to 8"):
        read_split(folder, "train", 9)


def write_family(folder: Path, prefixes: tuple[str, str], labels: np.ndarray) -> None:
    """Write four files of images that tell top from left, one per label."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
    images[:, 0, :] = 200  # the top row
    for prefix in prefixes:
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels.astype(np.uint8))))


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("fashion-mnist", "."),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
        ("kmnist", "kmnist"),
    ],
)
def test_the_mnist_family_comes_from_data_dir(name: str, inside: str, tmp_path: Path) -> None:
    write_family(tmp_path / inside, ("train", "t10k"), np.arange(10))
    data = DATA[name](data_dir=str(tmp_path))
    assert (data.name, len(data.train), data.shape, len(data.classes)) == (name, 10, (1, 28, 28), 10)
    assert data.train.inputs[0, 0, 0].tolist() == [200] * 28


@pytest.mark.parametrize(
    ("split", "first", "classes"),
    [("balanced", 0, 47), ("byclass", 0, 62), ("bymerge", 0, 47), ("letters", 1, 26), ("digits", 0, 10)],
)
def test_emnist_stands_upright_and_counts_from_zero(split: str, first: int, classes: int, tmp_path: Path) -> None:
    prefixes = (f"emnist-{split}-train", f"emnist-{split}-test")
    write_family(tmp_path / "EMNIST/raw", prefixes, np.arange(first, first + classes))
    data = DATA["emnist"](data_dir=str(tmp_path), split=split)
    assert len(data.classes) == classes
    assert data.train.targets.tolist() == list(range(classes))
    # The files hold the transposed image: its top row is the left column.
    assert data.train.inputs[0, 0, :, 0].tolist() == [200] * 28
    assert data.train.inputs[0, 0, 0].tolist() == [200] + [0] * 27


def test_emnists_merged_classes_are_torchvisions() -> None:
    from torchvision.datasets import EMNIST

    from fedsim.data.emnist import CLASSES

    for split in ("byclass", "bymerge", "balanced", "digits", "mnist"):
        assert list(CLASSES[split]) == EMNIST.classes_split_dict[split]
    assert ["N/A", *CLASSES["letters"]] == EMNIST.classes_split_dict["letters"]


def test_fashion_mnist_comes_from_the_environment_before_debians_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path / "fashion-mnist", ("train", "t10k"), np.arange(10))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert len(fashion_mnist().test) == 10


def test_files_of_another_set_of_the_family_are_not_taken_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path, ("train", "t10k"), np.arange(10))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchvision.datasets.KMNIST", no_network)
    with pytest.raises(FileNotFoundError, match="kmnist was not found"):
        DATA["kmnist"]()


def no_network(*_: object, **__: object) -> None:
    raise OSError("no network")


def test_without_data_the_error_names_all_four_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("fedsim.data.fashion_mnist")
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    with pytest.raises(FileNotFoundError, match=r"no network.*data_dir.*\$FEDSIM_DATA.*debian.*connect to a network"):
        fashion_mnist()
    with pytest.raises(FileNotFoundError, match=r"data_dir = .*does not hold fashion-mnist"):
        fashion_mnist(data_dir=str(tmp_path))


def test_a_download_is_found_where_it_was_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: Path, *, download: bool) -> None:
        write_family(root / "KMNIST" / "raw", ("train", "t10k"), np.arange(10))

    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchvision.datasets.KMNIST", download)
    assert len(DATA["kmnist"]().train) == 10


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    data = fashion_mnist()
    assert (len(data.train), len(data.test), data.shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(data.train.targets).tolist() == [6000] * 10
    inputs = data.normalise(data.train.inputs)
    assert abs(float(inputs.mean())) < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3
