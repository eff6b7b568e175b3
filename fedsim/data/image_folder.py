"""Images as files, in a folder or a zip archive, decoded once into a memory-mapped cache."""

import io
import json
import logging
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fedsim.data.dataset import Dataset, Examples, Spacing, channel_statistics, numbered, origin_names
from fedsim.data.file_tree import FileTree, open_tree
from fedsim.data.image_cache import cached
from fedsim.data.layouts import Layout, Sorted, sorted_images
from fedsim.data.pictures import Mode, check_size, pixels_of
from fedsim.data.places import user_path

logger = logging.getLogger(__name__)
# Errors of Pillow and zipfile for damaged, encrypted or far too large files.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def image_folder(
    *,
    path: str,
    layout: Layout = "auto",
    train: str = "train",
    test: str = "test",
    test_share: float = 0.2,
    test_spacing: Spacing = "random",
    mode: Mode = "RGB",
    size: int | None = None,
) -> Dataset:
    """Read your own images from a tree split/class/file or site/split/class/file, in a folder or a zip archive.

    Sites, such as hospitals or domains, are the id column ``site``. Images are decoded once, into a memory-mapped cache
    that all processes share; it is rebuilt when a file changes. As torchvision does, it leaves out what EXIF data say
    of a photo's orientation.

    Parameters
    ----------
    path
        Folder or zip archive with the images, at its top or in a single folder there; as given, or relative to
        ``$FEDSIM_DATA``.
    layout
        Meaning of the folders: ``split/class``, ``site/split/class``, ``split/site/class``, or, without splits,
        ``site/class`` or ``class``. With ``auto`` it is one of the first two, by where the splits' names are.
    train, test
        Names of the splits' folders; other folders next to them are not used.
    test_share
        Share of each site's images of a class that become the test set where there are no splits, such as one of every
        five in the order of their names.
    test_spacing
        Where in every stretch of images those lie: at ``random`` places, or always at the last (``even``).
    mode
        Colour mode: ``RGB`` for three channels, ``L`` for one.
    size
        Height and width to which images are resized; if not given, all images must have the same size.

    Raises
    ------
    FileNotFoundError
        If the path or one of the splits does not exist.
    ValueError
        If the archive is damaged, a file cannot be decoded, images differ in size, the layout is in doubt, or a class
        has no training image.

    References
    ----------
    The layout of torchvision's ImageFolder, once per split.
    """
    check_size(size)
    place = user_path(path)
    with open_tree(place) as tree, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of files that it cannot decode, which an error names
        tests = (test_share, test_spacing)
        images = sorted_images(tree.names, place, layout=layout, splits=(train, test), tests=tests)
        files = {
            part: {name: origin.label for name, origin in listing.items()}
            for part, listing in (("train", images.train), ("test", images.test))
        }
        versions = [
            [part, name, label, tree.version(name)]
            for part, listing in files.items()
            for name, label in listing.items()
        ]
        key = sha256(json.dumps([str(place.absolute()), mode, size, versions]).encode()).hexdigest()[:16]
        decode = partial(_decode, tree, place, mode, size)
        shape = decode(next(iter(files["train"]))).shape
        cache = cached(
            key,
            partial(_fill, files, images.classes, decode, shape),
            f"{len(versions):,} images of {place}",
            len(versions) * math.prod(shape),
        )
    if images.note:
        logger.warning(images.note)
    return _read(cache, images)


def _decode(tree: FileTree, place: Path, mode: Mode, size: int | None, name: str) -> np.ndarray:
    """Return an image as [channels, height, width]."""
    try:
        with Image.open(io.BytesIO(tree.read(name))) as image:
            return pixels_of(image, mode, size)
    except UNREADABLE as error:
        reason = "not an image, or truncated" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{place}: {name} cannot be decoded ({reason}); replace or remove the file") from error


def _fill(
    files: Mapping[str, Mapping[str, str]],
    classes: tuple[str, ...],
    decode: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    folder: Path,
) -> None:
    """Write all images, their classes and the statistics of those for training."""
    first = next(iter(files["train"]))
    for split, listing in files.items():
        # Written one by one: in a memory-mapped file, a full disk would end Python.
        with (folder / f"{split}.npy").open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            whole = {"descr": "|u1", "fortran_order": False, "shape": (len(listing), *shape)}
            np.lib.format.write_array_header_1_0(file, whole)
            for name, image in zip(listing, pool.map(decode, listing), strict=True):
                if image.shape != shape:
                    raise ValueError(
                        f"images differ in size: {first} has {_extent(shape)} pixels and {name} "
                        f"{_extent(image.shape)}; set [data] size to resize all"
                    )
                file.write(image.tobytes())
        targets = [classes.index(label) for label in listing.values()]
        np.save(folder / f"{split}_targets.npy", np.array(targets, dtype=np.int64))
    train = torch.from_numpy(np.load(folder / "train.npy", mmap_mode="c"))
    (folder / "statistics.json").write_text(json.dumps(channel_statistics(train, 255.0)))


def _extent(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[2]}"


def _read(cache: Path, images: Sorted) -> Dataset:
    def load(name: str, **settings: Any) -> torch.Tensor:
        return torch.from_numpy(np.load(cache / f"{name}.npy", **settings))

    # Copy on write: pages are read when they are needed, shared by all processes, and never written back.
    train, test = (Examples(load(split, mmap_mode="c"), load(f"{split}_targets")) for split in ("train", "test"))
    mean, std = map(tuple, json.loads((cache / "statistics.json").read_text()))
    ids = {"site": numbered(images.sites)} if images.sites else {}
    origins = {column: origin_names(values, images.sites) for column, values in ids.items()}
    dataset = Dataset("image-folder", train, test, images.classes, 255.0, mean, std, ids, fitted=(mean, std))
    return replace(dataset, origins=origins)
