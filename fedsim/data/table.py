"""Your own table, from a CSV or parquet file: a row per example, a column per feature."""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge

from fedsim.data.columns import encoder_of, first_row, inputs_of, is_number
from fedsim.data.dataset import Dataset, Examples, Spacing, channel_statistics, numbered, origin_names, set_aside
from fedsim.data.places import user_path
from fedsim.data.tokenised import tokenised
from fedsim.errors import first_line
from fedsim.memory import check_fits
from fedsim.reading import read_bytes, read_text

PARTS = ("train", "test")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
LISTED = 5
# For a file with another separator than its suffix says.
REMEDIES = {
    ";": "save it with ',' and numbers with a decimal point",
    "\t": "name the file .tsv",
    ",": "name the file .csv",
    "|": "save it with ','",
}
NONE = " (in .csv and .tsv, NA and None are no values)"
logger = logging.getLogger(__name__)


def table(
    *,
    path: str,
    target: tuple[str, ...],
    id: tuple[str, ...] = (),  # noqa: A002 (what the column holds)
    columns: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    text: str = "",
    tokenizer: str = "",
    length: Annotated[int, Ge(0)] = 0,
    threshold: float | None = None,
    test_share: float = 0.2,
    test_spacing: Spacing = "random",
    task: str = "auto",
) -> Dataset:
    """Read a table from a CSV or parquet file, or a folder with one to train and one to test.

    Numbers are standardised, and texts encoded as one feature per category; both follow from the training rows alone.

    Parameters
    ----------
    path
        Path of a ``.csv``, ``.tsv`` or ``.parquet`` file, or of a folder with ``train`` and ``test`` of one of these
        kinds; as given, or relative to ``$FEDSIM_DATA``.
    target
        Names of the columns with the targets: one column of texts, whole numbers or booleans for classes, one or more
        of other numbers for regression. Several columns of 0 and 1 are several labels.
    id
        Names of the columns with the origin of each row, such as a hospital.
    columns
        Names of the columns that are features (default: all others).
    categorical
        Names of the features that are categories although they are numbers, or have more than 100 different texts.
    text
        Name of the column with texts that are the inputs, as tokens, in place of features.
    tokenizer
        Folder of a pretrained model with its tokenizer, or the id of a model of the hub, for ``text``; ``id@revision``
        for another branch, tag or commit than ``main``.
    length
        Largest number of tokens of a text, 0 for as many as the model takes; longer texts are truncated.
    threshold
        Number that splits a target of numbers into two classes: at most it, and above it.
    test_share
        Share of the rows that become the test set where there is only one file, such as one of every five.
    test_spacing
        Where in every stretch of rows those lie: at ``random`` places, or always at the last (``even``).
    task
        What is learnt, as ``[data] task`` says.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, a column is missing, not numeric, has empty cells, is named twice or is target and feature,
        or a share is out of range.
    """
    place = user_path(path)
    train, test = _parts(place, test_share, test_spacing)
    if threshold is not None:
        train, test = (_split_at(threshold, rows, target, place) for rows in (train, test))
    if text or tokenizer or length:
        dataset = of_texts(train, test, place, text, tokenizer, length, target, columns, id, task)
        return replace(dataset, origins=_origins(place, train, dataset.ids))
    features = columns or _features(train, (*target, *id), place)
    for part in (train, test):
        _check_columns(part, (*target, *features), place)
    _check_columns(train, id, place)
    _check_names(target, columns, categorical, features)
    encoders = [encoder_of(train[name], name in categorical, place) for name in features]
    if not encoders:
        raise ValueError(f"{place} has no columns besides target and id; a model needs at least one feature")
    check_fits(8 * (len(train) + len(test)) * sum(each.width for each in encoders), f"{place}, encoded,")
    # In float64, as float32 has too few digits for a time in seconds.
    inputs = [torch.from_numpy(inputs_of(part, encoders, place)) for part in (train, test)]
    mean, std = channel_statistics(inputs[0], 1.0)
    targets, classes = _targets(train, test, target, task, place)
    ids = {name: numbered(train[name]) for name in id}
    return Dataset(
        place.stem,
        Examples(inputs[0], targets[0]),
        Examples(inputs[1], targets[1]),
        classes,
        mean=mean,
        std=std,
        ids=ids,
        task=task,
        fitted=(mean, std),
        origins=_origins(place, train, ids),
    )


def of_texts(
    train: pd.DataFrame,
    test: pd.DataFrame,
    place: Path,
    text: str,
    tokenizer: str,
    length: int,
    target: Sequence[str],
    columns: Sequence[str],
    id: Sequence[str],  # noqa: A002 (as above)
    task: str,
) -> Dataset:
    """Return a data set whose inputs are one column's texts, as tokens; the arguments are those of `table`.

    Parameters
    ----------
    place
        Where the rows are from, for messages and the name.

    Raises
    ------
    ValueError
        If a column is missing, empty or of another kind, or there is no tokenizer.
    """
    if not text or not tokenizer:
        lacking, other = ("tokenizer", "text") if text else ("text", "tokenizer and length")
        raise ValueError(f"{other} needs {lacking}: give the column as text, and a model's folder as tokenizer")
    if columns:
        raise ValueError(f"columns names {columns[0]!r}, and the inputs are the texts of {text!r}; remove one of them")
    for part in (train, test):
        _check_columns(part, (*target, text), place)
    _check_columns(train, id, place)
    if is_number(train[text]):
        raise ValueError(f"{place}: column {text!r} holds numbers; text must name a column of texts")
    texts = {part: list(rows[text].astype(str)) for part, rows in zip(PARTS, (train, test), strict=True)}
    tokens = tokenised(texts, tokenizer, length, str(place))
    targets, classes = _targets(train, test, target, task, place)
    return Dataset(
        place.stem,
        Examples(tokens.of["train"], targets[0]),
        Examples(tokens.of["test"], targets[1]),
        classes,
        ids={name: numbered(train[name]) for name in id},
        vocabulary=tokens.vocabulary,
        task=task,
        pad_token=tokens.pad,
    )


def _split_at(threshold: float, rows: pd.DataFrame, target: Sequence[str], place: Path) -> pd.DataFrame:
    """Return a table whose target says whether it was above a threshold."""
    if len(target) != 1:
        raise ValueError(f"threshold = {threshold} splits one target, and target names {len(target)}")
    _check_columns(rows, target, place)
    [name] = target
    if not is_number(rows[name]):
        raise ValueError(f"{place}: column {name!r} is not numeric, so that threshold = {threshold} cannot split it")
    names = np.where(rows[name].to_numpy() > threshold, f"> {threshold:g}", f"<= {threshold:g}")
    return rows.assign(**{name: names})


def _parts(place: Path, test_share: float, spacing: Spacing) -> tuple[pd.DataFrame, pd.DataFrame]:
    if place.is_dir():
        train, test = (_read(_file(place, part)) for part in PARTS)
        return train, test
    if not 0 < test_share < 1:
        raise ValueError(f"test_share = {test_share} must be more than 0 and less than 1")
    rows = _read(place)
    is_test = set_aside(len(rows), test_share, spacing)
    if is_test.all() or not is_test.any():
        raise ValueError(
            f"{place} has {len(rows)} rows, too few to set test_share = {test_share} aside; give more rows"
        )
    return rows[~is_test], rows[is_test]


def _file(folder: Path, part: str) -> Path:
    found = [each for each in sorted(folder.glob(f"{part}.*")) if each.suffix in SUFFIXES]
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} files {part}.csv, .tsv or .parquet; it must have one")
    return found[0]


def _origins(place: Path, train: pd.DataFrame, ids: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Return the names of the ids by column, as the file has them: pandas reads 007 as 7."""
    file = _file(place, PARTS[0]) if place.is_dir() else place
    texts = train[[*ids]].astype(str)
    if file.suffix != ".parquet" and any(is_number(train[name]) for name in ids):
        texts = _from_csv(file, read_text(file), as_text=ids).loc[train.index]
    return {name: origin_names(own, texts[name].tolist()) for name, own in ids.items()}


def _read(file: Path) -> pd.DataFrame:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file} ends in {file.suffix!r}; give a file that ends in {', '.join(SUFFIXES)}")
    wrong = ""
    try:
        if file.suffix == ".parquet":
            rows = pd.read_parquet(io.BytesIO(read_bytes(file)))
            exact = [name for name in rows if pd.api.types.infer_dtype(rows[name]) == "decimal"]
            rows = rows.astype(dict.fromkeys(exact, np.float64))
        else:
            text = read_text(file)
            if not (wrong := _wrong_header(text, SEPARATORS[file.suffix])):
                rows = _from_csv(file, text)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{file} is damaged or no table ({first_line(error)}); save it again") from error
    if wrong:
        raise ValueError(f"{file} has {wrong}")
    return rows.reset_index(drop=True)


def _from_csv(file: Path, text: str, as_text: Iterable[str] = ()) -> pd.DataFrame:
    types = dict.fromkeys(as_text, str)
    return pd.read_csv(io.StringIO(text), sep=SEPARATORS[file.suffix], low_memory=False, dtype=types)


def _wrong_header(text: str, separator: str) -> str:
    """Return two columns of one name, of which pandas changes one, or another separator; empty if all is well."""
    header = next(filter(None, csv.reader(io.StringIO(text), delimiter=separator)), [])
    if twice := [name for name in header if name and header.count(name) > 1]:
        return f"two columns named {twice[0]!r}; give each a name of its own"
    other = next((each for each in REMEDIES if len(header) == 1 and each in header[0]), None)
    return f"{other!r} between its columns, not {separator!r}; {REMEDIES[other]}" if other else ""


def _features(rows: pd.DataFrame, others: Sequence[str], place: Path) -> tuple[str, ...]:
    """Return all columns but the others and leading ones without a name that may be an index, as pandas writes it."""
    free = [name for name in rows.columns if name not in others]
    leading = takewhile(lambda name: str(name).startswith("Unnamed: "), rows.columns)
    index = [name for name in leading if name in free and _may_be_index(rows[name])]
    if index:
        logger.warning(
            "%s: its first column has no name and another whole number in each row, as an index has; it is no feature "
            "(to use it, name it)",
            place,
        )
    return tuple(name for name in free if name not in index)


def _may_be_index(column: pd.Series) -> bool:
    return column.dtype.kind in "iu" and column.is_unique and bool((column >= 0).all())


def _check_columns(rows: pd.DataFrame, names: Sequence[str], place: Path) -> None:
    """Check that columns are there, once each, and have a value in every row."""
    for name in names:
        found = list(rows.columns).count(name)
        if found != 1:
            problem = "has no column" if not found else f"has {found} columns"
            raise ValueError(f"{place} {problem} {name!r}; its columns are: {_listed(rows.columns)}")
        if empty := int(rows[name].isna().sum()):
            row = first_row(rows, rows[name].isna())
            raise ValueError(
                f"{place}: column {name!r} has no value in {empty} of {len(rows)} rows, such as row {row}{NONE}; "
                "fill or remove these rows, or leave the column out by naming the others as columns"
            )


def _check_names(
    target: Sequence[str], columns: Sequence[str], categorical: Sequence[str], features: Sequence[str]
) -> None:
    """Check that no column is named twice, no target is a feature, and what is categorical is one."""
    for option, names in {"target": target, "columns": columns, "categorical": categorical}.items():
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"{option} names {twice!r} twice; name each column once")
    if both := [name for name in target if name in features]:
        raise ValueError(f"columns names {both[0]!r}, which is the target; a model must not be given what it predicts")
    if unknown := [name for name in categorical if name not in features]:
        raise ValueError(f"categorical names {unknown[0]!r}, which is no feature; features are: {_listed(features)}")


def _targets(
    train: pd.DataFrame, test: pd.DataFrame, names: Sequence[str], task: str, place: Path
) -> tuple[list[torch.Tensor], tuple[str, ...]]:
    """Return the targets to train and to test, and the names of the classes or labels."""
    if not names:
        raise ValueError("target must name a column")
    kinds = [train[name].dtype for name in names]
    numeric = all(is_number(train[name]) for name in names)
    are_classes = not numeric or all(kind.kind in "iub" for kind in kinds)
    if len(names) == 1 and are_classes and task not in ("regression", "binary", "multi-label"):
        known = sorted(set(train[names[0]]), key=lambda value: value if numeric else str(value))
        index = {value: number for number, value in enumerate(known)}
        if unknown := set(test[names[0]]) - index.keys():
            remedy = (
                "add some, or, if it is a number to predict, set [data] task = 'regression'" if numeric else "add some"
            )
            raise ValueError(f"{place}: class {min(map(str, unknown))!r} of {names[0]!r} has no training row; {remedy}")
        labels = [torch.tensor([index[value] for value in rows[names[0]]]) for rows in (train, test)]
        return labels, tuple(map(str, known))
    if not numeric:
        wrong = next(name for name in names if not is_number(train[name]))
        raise ValueError(f"{place}: column {wrong!r} is not numeric, and targets of {task!r} are numbers")
    # A tensor that shared its memory with a table could not be written to, of which torch warns.
    values = [torch.tensor(rows[list(names)].to_numpy(dtype=np.float64)).float() for rows in (train, test)]
    are_labels = len(names) > 1 and all(((each == 0) | (each == 1)).all() for each in values)
    return [each[:, 0] if len(names) == 1 else each for each in values], tuple(names) if are_labels else ()


def _listed(names: Iterable[object]) -> str:
    """Return the first names, for a message."""
    texts = list(map(str, names))
    return ", ".join(texts[:LISTED]) + (", ..." if len(texts) > LISTED else "")
