"""The 8x8 handwritten digits that scikit-learn ships."""

from importlib.metadata import distribution

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples

TEST_SHARE = 5


def digits() -> Dataset:
    """Read scikit-learn's 1,797 real 8x8 digits; needs no network.

    Notes
    -----
    scikit-learn holds the test part of the original set, so there is no official split: every fifth example of
    each class, in the order of the file, is the server's test set, whatever the seed.

    References
    ----------
    Alpaydin, Kaynak 1998, Optical recognition of handwritten digits, UCI, doi 10.24432/C50P49.
    """
    # sklearn.datasets takes a second to import for these 57 kB.
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",", dtype=np.int64)
    targets, images = table[:, -1], table[:, :-1].astype(np.uint8).reshape(-1, 8, 8)
    is_test = np.zeros(len(targets), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(targets == label)[TEST_SHARE - 1 :: TEST_SHARE]] = True
    train, test = (
        Examples(torch.from_numpy(images[chosen]).unsqueeze(1), torch.from_numpy(targets[chosen]))
        for chosen in (~is_test, is_test)
    )
    return Dataset(
        name="digits",
        train=train,
        test=test,
        classes=tuple(str(label) for label in range(10)),
        scale=16.0,
        mean=(0.3051,),
        std=(0.3762,),
    )
