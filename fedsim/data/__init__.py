"""Data sets: ``DATA`` maps a name to its function.

A data set is a function ``data_set(*, options) -> Dataset`` that reads everything into memory once, or maps it there.
"""

from collections.abc import Callable

from fedsim.data.arrays import arrays
from fedsim.data.cifar import cifar10, cifar100
from fedsim.data.dataset import Dataset, Examples, channel_statistics, check_dataset, image_dataset
from fedsim.data.digits import digits
from fedsim.data.emnist import emnist
from fedsim.data.fashion_mnist import fashion_mnist
from fedsim.data.image_folder import image_folder
from fedsim.data.kmnist import kmnist
from fedsim.data.leaf import femnist, leaf
from fedsim.data.mnist import mnist
from fedsim.data.shakespeare import shakespeare
from fedsim.data.svhn import svhn
from fedsim.data.toy import toy, toy_text
from fedsim.training.augmentation import Augmentation

__all__ = ["DATA", "Augmentation", "Dataset", "Examples", "channel_statistics", "check_dataset", "image_dataset"]

DATA: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "emnist": emnist,
    "kmnist": kmnist,
    "svhn": svhn,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image-folder": image_folder,
    "arrays": arrays,
    "shakespeare": shakespeare,
    "femnist": femnist,
    "leaf": leaf,
    "toy": toy,
    "toy-text": toy_text,
}
