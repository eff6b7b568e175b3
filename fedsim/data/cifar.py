"""CIFAR-10 and CIFAR-100, from torchvision's loaders."""

import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from fedsim.data.checksum import check_md5
from fedsim.data.dataset import Dataset, Examples, image_dataset
from fedsim.data.places import cache_folder, find_or_download


def cifar10(*, data_dir: str | None = None) -> Dataset:
    """Read the 60,000 32x32 colour images of 10 kinds of animals and vehicles.

    Parameters
    ----------
    data_dir
        The folder ``cifar-10-batches-py``, or one that contains it or the archive ``cifar-10-python.tar.gz``.
        Default: the same in ``$FEDSIM_DATA``, else torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If the archive or one of its files does not have its checksum.

    References
    ----------
    Krizhevsky 2009, Learning multiple layers of features from tiny images, technical report, University of Toronto.
    """
    from torchvision.datasets import CIFAR10  # takes a second, and only this data set needs it

    return _read("cifar10", CIFAR10, data_dir)


def cifar100(*, data_dir: str | None = None) -> Dataset:
    """Read the 60,000 32x32 colour images of 100 kinds of things.

    Parameters
    ----------
    data_dir
        The folder ``cifar-100-python``, or one that contains it or the archive ``cifar-100-python.tar.gz``.
        Default: the same in ``$FEDSIM_DATA``, else torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If the archive or one of its files does not have its checksum.

    References
    ----------
    Krizhevsky 2009, Learning multiple layers of features from tiny images, technical report, University of Toronto.
    """
    from torchvision.datasets import CIFAR100

    return _read("cifar100", CIFAR100, data_dir)


def _read(name: str, loader: Any, data_dir: str | None) -> Dataset:
    def has_files(place: Path) -> bool:
        has_archive = (place / loader.filename).is_file() and not (place / loader.base_folder).is_dir()
        return has_archive or (place.name == loader.base_folder and place.is_dir())

    folder = find_or_download(
        name,
        data_dir,
        has_files,
        partial(loader, download=True),
        folders=(loader.base_folder, "."),
        needs=f"{loader.base_folder} or {loader.filename}",
    )
    if folder.name != loader.base_folder:
        folder = _unpack(folder / loader.filename, loader)
    for file, md5 in _files(loader).items():
        check_md5(folder / file, md5)
    train, test = (loader(folder.parent, train=is_train) for is_train in (True, False))
    return image_dataset(name, _examples(train), _examples(test), tuple(train.classes))


def _unpack(archive: Path, loader: Any) -> Path:
    """Return the folder with the archive's files, unpacking them only once."""
    from torchvision.datasets.utils import check_integrity, extract_archive

    folder = cache_folder() / loader.base_folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # one process unpacks, the others wait
        if not all(check_integrity(folder / file, md5) for file, md5 in _files(loader).items()):
            check_md5(archive, loader.tgz_md5)
            with TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
                extract_archive(str(archive), temporary)
                shutil.rmtree(folder, ignore_errors=True)
                (Path(temporary) / loader.base_folder).rename(folder)
    return folder


def _files(loader: Any) -> dict[str, str]:
    """Return the MD5 sum of each of a loader's files."""
    return dict([*loader.train_list, *loader.test_list, (loader.meta["filename"], loader.meta["md5"])])


def _examples(loaded: Any) -> Examples:
    images = np.ascontiguousarray(loaded.data.transpose(0, 3, 1, 2))
    return Examples(torch.from_numpy(images), torch.tensor(loaded.targets, dtype=torch.int64))
