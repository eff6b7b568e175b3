"""Fashion-MNIST, from a folder, Debian's package or torchvision's download."""

import os
from pathlib import Path

from fedsim.data.dataset import Dataset
from fedsim.data.idx import FILES, find_idx, read_split

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_FOLDER = Path("~/.cache/fedsim")
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
        ``FashionMNIST/raw`` that has them. Without it: ``$FEDSIM_DATA``, the folder of Debian's package
        dataset-fashion-mnist, torchvision's download, in this order.

    Raises
    ------
    FileNotFoundError
        If the files are nowhere; the message says where they may lie.
    ValueError
        If a file is truncated, corrupt or not what its name says.

    References
    ----------
    Xiao, Rasul, Vollgraf 2017, Fashion-MNIST, arXiv 1708.07747.
    """
    folder = _folder(data_dir)
    return Dataset(
        name="fashion-mnist",
        train=read_split(folder, "train", len(CLASSES)),
        test=read_split(folder, "test", len(CLASSES)),
        classes=CLASSES,
        scale=255.0,
        mean=(0.2860,),
        std=(0.3530,),
    )


def _folder(data_dir: str | None) -> Path:
    if data_dir is not None:
        if folder := _folder_with_files(Path(data_dir).expanduser()):
            return folder
        raise FileNotFoundError(_where_to_put(f"data_dir = {data_dir!r} has none of Fashion-MNIST's files"))
    environment = os.environ.get("FEDSIM_DATA")
    roots = [Path(environment).expanduser()] if environment else []
    for root in (*roots, DEBIAN_FOLDER, DOWNLOAD_FOLDER.expanduser()):
        if folder := _folder_with_files(root):
            return folder
    from torchvision.datasets import FashionMNIST  # takes a second, and only the download needs it

    try:
        FashionMNIST(DOWNLOAD_FOLDER.expanduser(), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            _where_to_put(f"Fashion-MNIST was not found and the download failed ({reason})")
        ) from error
    return DOWNLOAD_FOLDER.expanduser() / "FashionMNIST" / "raw"


def _folder_with_files(root: Path) -> Path | None:
    names = [name for pair in FILES.values() for name in pair]
    for folder in (root, root / "fashion-mnist", root / "FashionMNIST" / "raw"):
        if any(find_idx(folder, name) for name in names):
            return folder
    return None


def _where_to_put(problem: str) -> str:
    return (
        f"{problem}; give the folder with the four IDX files as [data] data_dir, or in $FEDSIM_DATA, or install "
        f"Debian's package dataset-fashion-mnist (it fills {DEBIAN_FOLDER}), or let torchvision "
        "download them with a network"
    )
