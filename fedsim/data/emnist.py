"""EMNIST, from a folder or torchvision's download."""

import string
from typing import Literal

from fedsim.data.dataset import Dataset
from fedsim.data.idx import idx_dataset

# Lower-case letters that look like their capitals share a class with them in the merged splits.
MERGED = "cijklmopsuvwxyz"
ALL = string.digits + string.ascii_uppercase + string.ascii_lowercase
CLASSES = {
    "balanced": tuple(character for character in ALL if character not in MERGED),
    "bymerge": tuple(character for character in ALL if character not in MERGED),
    "byclass": tuple(ALL),
    "letters": tuple(string.ascii_lowercase),
    "digits": tuple(string.digits),
    "mnist": tuple(string.digits),
}


def emnist(
    *,
    split: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
    data_dir: str | None = None,
) -> Dataset:
    """Read one of the six splits of up to 814,255 28x28 images of handwritten letters and digits.

    Parameters
    ----------
    split
        ``balanced`` has 47 classes with 2,400 training images each, ``byclass`` 62 and ``bymerge`` 47 unbalanced
        ones, ``letters`` 26, ``digits`` and ``mnist`` 10.
    data_dir
        Folder with the split's four IDX files, plain or gzipped, or with a folder ``emnist`` or torchvision's
        ``EMNIST/raw`` that has them. Default: these folders in ``$FEDSIM_DATA``, else torchvision's download.

    Raises
    ------
    FileNotFoundError
        If the files are not found; the message says where to put them.
    ValueError
        If a file is truncated, corrupt or not what its name says.

    Notes
    -----
    The files hold the images transposed and torchvision leaves them so; here they are upright. In the files the
    labels of ``letters`` start at 1; here those of every split start at 0.

    References
    ----------
    Cohen, Afshar, Tapson, van Schaik 2017, EMNIST: an extension of MNIST to handwritten letters, arXiv 1702.05373.
    """
    return idx_dataset(
        "emnist",
        data_dir,
        CLASSES[split],
        "EMNIST",
        loader_options={"split": split},
        prefixes=(f"emnist-{split}-train", f"emnist-{split}-test"),
        first_label=1 if split == "letters" else 0,
        transposed=True,
    )
