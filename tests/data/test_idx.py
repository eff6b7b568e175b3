import gzip
import importlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.dataset import stratified
from fedsim.data.digits import digits
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
    with pytest.raises(ValueError, match="the largest label is 9; it must be from 0 to 8"):
        read_split(folder, "train", 9)


@pytest.mark.parametrize("inside", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_comes_from_data_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory, inside: str) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / inside).parent.mkdir(parents=True, exist_ok=True)
    target = root / inside if inside != "." else root / "here"
    folder.rename(target)
    assert len(fashion_mnist(data_dir=str(root if inside != "." else target)).train) == 3


def test_fashion_mnist_comes_from_the_environment_before_debians_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(folder))
    assert len(fashion_mnist().test) == 3


def test_without_data_the_error_names_all_four_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    module = importlib.import_module("fedsim.data.fashion_mnist")
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(module, "DOWNLOAD_FOLDER", tmp_path / "download")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    with pytest.raises(
        FileNotFoundError, match=r"no network.*data_dir.*\$FEDSIM_DATA.*dataset-fashion-mnist.*torchvision"
    ):
        fashion_mnist()
    with pytest.raises(FileNotFoundError, match=r"data_dir = .*has none"):
        fashion_mnist(data_dir=str(tmp_path))


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    data = fashion_mnist()
    assert (len(data.train), len(data.test), data.shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(data.train.targets).tolist() == [6000] * 10
    inputs = data.normalise(data.train.inputs)
    assert abs(float(inputs.mean())) < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3


def test_digits_are_scikit_learns_and_split_the_same_way_always() -> None:
    data = digits()
    assert (len(data.train), len(data.test), data.shape) == (1442, 355, (1, 8, 8))
    assert data.train.inputs.dtype == torch.uint8
    inputs = data.normalise(data.train.inputs)
    assert abs(float(inputs.mean())) < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3
    assert torch.bincount(data.test.targets).min() >= 34


def test_a_stratified_sample_keeps_each_class_share_to_within_one() -> None:
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ]
    chosen = stratified(targets, 17, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 17
    counts = torch.bincount(targets[chosen], minlength=3)
    assert (counts - torch.tensor([8.5, 5.1, 3.4])).abs().max() < 1
