"""Fashion-MNIST, from a folder, Debian's package or torchvision's download."""

from pathlib import Path

from fedsim.data.dataset import Dataset
from fedsim.data.idx import idx_dataset

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fashion_mnist(*, data_dir: str | None = None) -> Dataset:
    """Read the 70,000 real 28x28 images of clothing.

    Parameters
    ----------
    data_dir
        Folder with the four IDX files, plain or gzipped, or with a folder ``fashion-mnist`` or torchvision's
        ``FashionMNIST/raw`` that has them. Default, in this order: these folders in ``$FEDSIM_DATA``, those of an
        earlier download, the folder of Debian's package dataset-fashion-mnist, torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If a file is truncated, corrupt or not what its name says.

    References
    ----------
    Xiao, Rasul, Vollgraf 2017, Fashion-MNIST, arXiv 1708.07747.
    """
    return idx_dataset("fashion-mnist", data_dir, CLASSES, "FashionMNIST", more_places=[DEBIAN_FOLDER])
