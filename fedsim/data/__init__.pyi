from collections.abc import Callable

from fedsim.lazy import LazyTable
from fedsim.training.augmentation import Augmentation

from .dataset import Dataset, Examples, channel_statistics, check_dataset, image_dataset

__all__ = ["DATA", "Augmentation", "Dataset", "Examples", "channel_statistics", "check_dataset", "image_dataset"]

DATA: LazyTable[Callable[..., Dataset]]
