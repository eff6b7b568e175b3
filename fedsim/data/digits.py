"""The 8x8 handwritten digits that scikit-learn ships."""

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
    from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

    raw = load_digits()
    targets = raw.target.astype(np.int64)
    is_test = np.zeros(len(targets), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(targets == label)[TEST_SHARE - 1 :: TEST_SHARE]] = True
    images = raw.images.astype(np.uint8)
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
