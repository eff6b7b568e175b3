"""Data sets: ``DATA`` maps a name to its function.

A data set is a function ``data_set(*, options) -> Dataset`` that reads everything into memory once, or maps it there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim import lazy

if TYPE_CHECKING:
    from fedsim.data.dataset import Dataset

DATA: "lazy.LazyTable[Callable[..., Dataset]]" = lazy.LazyTable(
    {
        "digits": "fedsim.data.digits:digits",
        "mnist": "fedsim.data.mnist:mnist",
        "fashion-mnist": "fedsim.data.fashion_mnist:fashion_mnist",
        "emnist": "fedsim.data.emnist:emnist",
        "kmnist": "fedsim.data.kmnist:kmnist",
        "svhn": "fedsim.data.svhn:svhn",
        "cifar10": "fedsim.data.cifar:cifar10",
        "cifar100": "fedsim.data.cifar:cifar100",
        "image-folder": "fedsim.data.image_folder:image_folder",
        "arrays": "fedsim.data.arrays:arrays",
        "table": "fedsim.data.table:table",
        "lines": "fedsim.data.lines:lines",
        "huggingface": "fedsim.data.huggingface:huggingface",
        "shakespeare": "fedsim.data.shakespeare:shakespeare",
        "femnist": "fedsim.data.leaf:femnist",
        "leaf": "fedsim.data.leaf:leaf",
        "pfllib": "fedsim.data.pfllib:pfllib",
        "synthetic": "fedsim.data.synthetic:synthetic",
        "toy": "fedsim.data.toy:toy",
        "toy-text": "fedsim.data.toy:toy_text",
    }
)
__getattr__, __all__ = lazy.attach(__name__, __file__)
