"""MNIST, from a folder or torchvision's download."""

from fedsim.data.dataset import Dataset
from fedsim.data.idx import idx_dataset


def mnist(*, data_dir: str | None = None) -> Dataset:
    """Read the 70,000 28x28 images of handwritten digits.

    Parameters
    ----------
    data_dir
        Folder with the four IDX files, plain or gzipped, or with a folder ``mnist`` or torchvision's ``MNIST/raw`` that
        has them. Default: these folders in ``$FEDSIM_DATA``, else torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If a file is truncated, corrupt or not what its name says.

    References
    ----------
    LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition, doi 10.1109/5.726791.
    """
    classes = tuple(str(digit) for digit in range(10))
    return idx_dataset("mnist", data_dir, classes, "MNIST")
