"""Data sets of Hugging Face, from a folder or from the hub; needs the extra ``datasets``."""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge

from fedsim.data.dataset import Dataset, Examples, Spacing, numbered, origin_names, set_aside
from fedsim.data.fingerprint import fingerprint
from fedsim.data.map_style import read_examples
from fedsim.data.pictures import Mode, check_size, pixels_of
from fedsim.data.places import existing_path, user_path
from fedsim.data.table import of_texts
from fedsim.errors import first_line

EXTRA = "datasets"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
logger = logging.getLogger(__name__)
# Of a folder that `save_to_disk` has written.
SAVED = ("dataset_dict.json", "state.json")


def huggingface(
    *,
    path: str,
    subset: str | None = None,
    revision: str | None = None,
    train: str = "train",
    test: str = "test",
    test_share: float = 0.2,
    test_spacing: Spacing = "random",
    inputs: tuple[str, ...] = (),
    target: str = "label",
    id: tuple[str, ...] = (),  # noqa: A002 (what the column holds)
    text: str = "",
    tokenizer: str = "",
    length: Annotated[int, Ge(0)] = 0,
    mode: Mode = "RGB",
    size: int | None = None,
    task: str = "auto",
) -> Dataset:
    """Read a data set of Hugging Face's ``datasets``: a local folder, or one of the hub by its id.

    Pictures, numbers that are standardised, or texts as tokens are read once, into a memory-mapped cache. No code of a
    data set is run.

    Parameters
    ----------
    path
        Folder that ``save_to_disk`` wrote, or with files that ``load_dataset`` reads, as given or relative to
        ``$FEDSIM_DATA``; else the id of a data set of the hub, such as ``ylecun/mnist``, which needs a network once.
    subset
        Name of the configuration, where the data set has several.
    revision
        Branch, tag or commit of the data set on the hub.
    train, test
        Names of the splits.
    test_share
        Share of the examples that become the test set where there is only the split to train on, such as one of every
        five.
    test_spacing
        Where in every stretch of examples those lie: at ``random`` places, or always at the last (``even``).
    inputs
        Names of the columns with the inputs (default: the one with pictures, else all columns of numbers).
    target
        Name of the column with the targets.
    id
        Names of the columns with the origin of each example, such as a writer.
    text
        Name of the column with texts that are the inputs, as tokens, in place of ``inputs``.
    tokenizer
        Folder of a pretrained model with its tokenizer, or the id of a model of the hub, for ``text``; ``id@revision``
        for another branch, tag or commit than ``main``.
    length
        Largest number of tokens of a text, 0 for as many as the model takes; longer texts are truncated.
    mode
        Colour mode of pictures: ``RGB`` for three channels, ``L`` for one.
    size
        Height and width to which pictures are resized; if not given, all must have the same size.
    task
        What is learnt, as ``[data] task`` says.

    Raises
    ------
    FileNotFoundError
        If the path is no folder and no id of a data set.
    ValueError
        If the package is not installed, the data set cannot be loaded, or a split or column is missing or of a kind
        that cannot be learnt from.
    """
    check_size(size)
    place = existing_path(path)
    if place is None and not HUB_ID.fullmatch(path):
        user_path(path)  # which says where it was looked for
    if place and not place.is_dir():
        raise ValueError(f"{place} is no folder; for a CSV or parquet file use [data] name = 'table'")
    library = _library()
    found = _load(library, path, place, subset, revision)
    splits = _splits(library, found, path, train, test, test_share, test_spacing)
    features = splits["train"].features
    wanted = [text] if text else []
    _check_columns(features, (target, *id, *inputs, *wanted), path)
    if text or tokenizer or length:
        if inputs:
            raise ValueError(
                f"inputs names {inputs[0]!r}, and the inputs are the texts of {text!r}; remove one of them"
            )
        rows = [splits[part].select_columns([target, *id, *wanted]).to_pandas() for part in ("train", "test")]
        dataset = of_texts(rows[0], rows[1], Path(path), text, tokenizer, length, (target,), (), id, task)
        dataset = _with_classes(dataset, rows, target, getattr(features[target], "names", None), path)
        return replace(dataset, origins=_origins(splits["train"], dataset.ids))
    columns = inputs or _default_inputs(library, features, (target, *id), path)
    _check_kinds(library, features, columns, path)
    parts = {part: _Examples(split, columns, target, mode, size) for part, split in splits.items()}
    kept = fingerprint(place) if place else [path, subset, revision, *(split._fingerprint for split in splits.values())]
    chosen = [kept, subset, train, test, test_share, test_spacing, columns, target, mode, size]
    ids = {column: _ids(splits["train"][column], column, path) for column in id}
    dataset = read_examples(
        parts,
        Path(path).name,
        sha256(json.dumps(chosen).encode()).hexdigest()[:16],
        classes=tuple(getattr(features[target], "names", None) or ()),
        task=task,
    )
    return replace(dataset, ids=ids, origins=_origins(splits["train"], ids))


def _with_classes(
    dataset: Dataset, rows: Sequence[pd.DataFrame], target: str, names: Sequence[str] | None, path: str
) -> Dataset:
    """Give a data set the classes that its column of labels names, in their order."""
    if not names:
        return dataset
    labels = [torch.tensor(each[target].to_numpy(dtype=np.int64)) for each in rows]
    if any((each < 0).any() for each in labels):
        raise ValueError(f"{path}: column {target!r} has rows of no class, -1; remove them, or choose another split")
    train, test = (Examples(part.inputs, own) for part, own in zip((dataset.train, dataset.test), labels, strict=True))
    return replace(dataset, train=train, test=test, classes=tuple(names))


class _Examples:
    """A split as a map-style data set: pairs of an input and a target."""

    def __init__(self, split: Any, columns: Sequence[str], target: str, mode: Mode, size: int | None) -> None:
        self.split = split.select_columns([*dict.fromkeys([*columns, target])])
        self.columns, self.target, self.mode, self.size = columns, target, mode, size
        # Whole numbers of 32 bits or more, such as times, need float64.
        self.dtype = np.result_type(np.float32, *filter(None, map(_dtype, map(split.features.get, columns))))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.split[index]
        values = [row[column] for column in self.columns]
        for column in (*self.columns, self.target):
            if row[column] is None:
                raise ValueError(f"column {column!r} is empty; remove the example, or fill it")
        if hasattr(values[0], "getbands"):  # a picture of Pillow
            return pixels_of(values[0], self.mode, self.size), row[self.target]
        if len(values) > 1 or not np.ndim(values[0]):  # of one column, lists of whole numbers are tokens
            return np.concatenate([np.ravel(np.asarray(each, self.dtype)) for each in values]), row[self.target]
        found = np.asarray(values[0])
        return found.astype(self.dtype) if found.dtype.kind == "f" else found, row[self.target]


def _library() -> ModuleType:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"name = 'huggingface' needs the package datasets ({error}); install it with "
            f"pip install 'fedsim-layerwise[{EXTRA}]'"
        ) from error
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each attempt
    return datasets


def _load(library: ModuleType, path: str, place: Path | None, subset: str | None, revision: str | None) -> Any:
    try:
        if place and any((place / name).is_file() for name in SAVED):
            return library.load_from_disk(str(place))
        if not place:
            logger.warning(f"loading {path!r} from the hub of Hugging Face")
        return library.load_dataset(str(place or path), subset, revision=revision)
    except Exception as error:  # the library, and a damaged file, may raise anything
        remedy = (
            "correct the folder, or save it again with save_to_disk"
            if place
            else "connect to a network once, or give a folder that save_to_disk wrote"
        )
        what = str(place) if place else f"path = {path!r} is no folder here and"
        raise ValueError(f"{what} cannot be loaded ({first_line(error)}); {remedy}") from error


def _splits(
    library: ModuleType, found: Any, path: str, train: str, test: str, test_share: float, spacing: Spacing
) -> dict[str, Any]:
    """Return the splits to train and to test."""
    if isinstance(found, library.Dataset):
        found = {train: found}
    if train not in found:
        raise ValueError(f"{path} has no split {train!r}; its splits are: {', '.join(found)}; set [data] train")
    if test in found:
        splits = {"train": found[train], "test": found[test]}
    else:
        if not 0 < test_share < 1:
            raise ValueError(f"test_share = {test_share} must be more than 0 and less than 1")
        is_test = set_aside(len(found[train]), test_share, spacing)
        splits = {
            part: found[train].select(np.flatnonzero(marks)) for part, marks in (("train", ~is_test), ("test", is_test))
        }
    if empty := [part for part, split in splits.items() if not len(split)]:
        raise ValueError(f"{path} has no example to {empty[0]}; give more, or another test_share")
    return splits


def _ids(values: Iterable[Any], column: str, path: str) -> np.ndarray:
    origins = list(values)
    if None in origins:
        raise ValueError(
            f"{path}: column {column!r} has no value at example {origins.index(None)}; give each its origin"
        )
    return numbered(origins)


def _origins(split: Any, ids: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Return the names of the ids by column: of labels with names those, else the values."""
    found = {}
    for column, own in ids.items():
        names, values = getattr(split.features[column], "names", None), list(split[column])
        found[column] = origin_names(own, [names[each] if each >= 0 else each for each in values] if names else values)
    return found


def _check_columns(features: Mapping[str, Any], names: Sequence[str], path: str) -> None:
    if missing := [name for name in names if name not in features]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; its columns are: {', '.join(features)}; set [data] inputs, target "
            "or id"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: inputs, target and id name a column twice ({', '.join(names)}); name each once")


def _default_inputs(
    library: ModuleType, features: Mapping[str, Any], others: Sequence[str], path: str
) -> tuple[str, ...]:
    rest = {name: feature for name, feature in features.items() if name not in others}
    pictures = [name for name, feature in rest.items() if isinstance(feature, library.Image)]
    if len(pictures) > 1:
        raise ValueError(f"{path} has pictures in {', '.join(pictures)}; name the one to learn from as [data] inputs")
    found = pictures or [name for name, feature in rest.items() if _dtype(feature)]
    if not found:
        raise ValueError(
            f"{path} has no column of pictures or numbers other than {', '.join(others)}; its columns are: "
            f"{', '.join(features)}; name a column of texts as [data] text, with a tokenizer"
        )
    return tuple(found)


def _check_kinds(library: ModuleType, features: Mapping[str, Any], columns: Sequence[str], path: str) -> None:
    for name in columns:
        if isinstance(features[name], library.Image):
            if len(columns) > 1:
                raise ValueError(f"{path}: inputs name {name!r}, which holds pictures, and others; name it alone")
        elif not _dtype(features[name]):
            raise ValueError(
                f"{path}: column {name!r} holds {getattr(features[name], 'dtype', type(features[name]).__name__)}, no "
                "pictures or numbers; name a column of texts as [data] text, with a tokenizer"
            )


def _dtype(feature: Any) -> str:
    """Return the type of the numbers that a column, or lists in it, hold; empty if it holds something else."""
    while (inner := getattr(feature, "feature", None)) is not None:
        feature = inner
    found = re.fullmatch(r"(u?int|float)\d+", str(getattr(feature, "dtype", "")))
    return found[0] if found and not hasattr(feature, "names") else ""  # labels have names
