"""Street View House Numbers, from torchvision's loader."""

from pathlib import Path

import numpy as np
import torch

from fedsim.data.checksum import check_md5
from fedsim.data.dataset import Dataset, Examples, image_dataset
from fedsim.data.places import find_or_download

SPLITS = ("train", "test")


def svhn(*, data_dir: str | None = None) -> Dataset:
    """Read the 99,289 32x32 colour images of digits in house numbers.

    Parameters
    ----------
    data_dir
        Folder with ``train_32x32.mat`` and ``test_32x32.mat``, or with a folder ``svhn`` that has them. Default:
        ``svhn`` in ``$FEDSIM_DATA``, else torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If a file does not have its checksum.

    References
    ----------
    Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning, NIPS workshop.
    """
    from torchvision.datasets import SVHN  # takes a second, and only this data set needs it

    files = {split: SVHN.split_list[split][1] for split in SPLITS}

    def download(root: Path) -> None:
        for split in SPLITS:
            SVHN(root / "svhn", split, download=True)

    folder = find_or_download(
        "svhn",
        data_dir,
        lambda place: any((place / file).is_file() for file in files.values()),
        download,
        folders=("svhn", "SVHN"),
        needs=" and ".join(files.values()),
    )
    parts = {}
    for split, file in files.items():
        check_md5(folder / file, SVHN.split_list[split][2])
        loaded = SVHN(folder, split)
        images, labels = np.ascontiguousarray(loaded.data), loaded.labels.astype(np.int64)
        parts[split] = Examples(torch.from_numpy(images), torch.from_numpy(labels))
    return image_dataset("svhn", parts["train"], parts["test"], tuple(str(digit) for digit in range(10)))
