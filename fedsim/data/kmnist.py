"""Kuzushiji-MNIST, from a folder or torchvision's download."""

from fedsim.data.dataset import Dataset
from fedsim.data.idx import idx_dataset

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def kmnist(*, data_dir: str | None = None) -> Dataset:
    """Read the 70,000 28x28 images of cursive Japanese characters.

    Parameters
    ----------
    data_dir
        Folder with the four IDX files, plain or gzipped, or with a folder ``kmnist`` or torchvision's ``KMNIST/raw``
        that has them. Default: these folders in ``$FEDSIM_DATA``, else torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If a file is truncated, corrupt or not what its name says.

    References
    ----------
    Clanuwat et al. 2018, Deep learning for classical Japanese literature, arXiv 1812.01718.
    """
    return idx_dataset("kmnist", data_dir, CLASSES, "KMNIST")
