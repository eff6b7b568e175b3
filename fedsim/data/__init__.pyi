from collections.abc import Callable

from fedsim.lazy import LazyTable
from fedsim.training.augmentation import Augmentation

from .checks import check_dataset
from .dataset import Dataset, Examples, channel_statistics, image_dataset, numbered, origin_names
from .text import word_tokens, word_vocabulary

__all__ = [
    "DATA",
    "Augmentation",
    "Dataset",
    "Examples",
    "channel_statistics",
    "check_dataset",
    "image_dataset",
    "numbered",
    "origin_names",
    "word_tokens",
    "word_vocabulary",
]

DATA: LazyTable[Callable[..., Dataset]]
