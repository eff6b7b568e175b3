"""Columns of a table as features: numbers as they are, categories as one feature each."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

MOST_CATEGORIES = 100  # of a column of texts, unless it is named as categorical
NUMBER = re.compile(r"[-+]?(\d+|\d{1,3}([,.' ]\d{3})+)([,.]\d+)? ?%?")  # as people and spreadsheets write it
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T]\d.*)?")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """How a column becomes features; without categories it is a number."""

    name: str
    categories: tuple[str, ...] | None

    @property
    def width(self) -> int:
        """Number of features."""
        return 1 if self.categories is None else len(self.categories)


def first_row(rows: pd.DataFrame, marks: pd.Series | np.ndarray) -> int:
    """Return the number of the first row with a mark in its file, from 1: some of the others may be test rows."""
    return int(rows.index[np.flatnonzero(marks)[0]]) + 1


def encoder_of(column: pd.Series, is_categorical: bool, place: Path) -> Encoder:
    """Return how a column of the training rows becomes features; its type may say that it is categorical.

    Raises
    ------
    ValueError
        If it is neither numeric nor, by its values, categorical.
    """
    name = str(column.name)
    is_categorical = is_categorical or isinstance(column.dtype, pd.CategoricalDtype)
    if is_number(column) and not is_categorical:
        return Encoder(name, None)
    categories = tuple(sorted(set(_names_of(column))))
    parsed = pd.to_numeric(column, errors="coerce")
    if not is_categorical and 0.5 < parsed.notna().mean() < 1:
        wrong = column[parsed.isna()].iloc[0]
        raise ValueError(
            f"{place}: column {name!r} is not numeric: {wrong!r} is one of {int(parsed.isna().sum())} texts among "
            "numbers; correct these, or name the column as categorical"
        )
    if not is_categorical and all(map(NUMBER.fullmatch, categories)):
        raise ValueError(
            f"{place}: column {name!r} has numbers such as {categories[-1]!r} stored as text; store them as numbers "
            "(1234.5), or name the column as categorical"
        )
    if not is_categorical and len(categories) > MOST_CATEGORIES and all(map(DATE.fullmatch, categories)):
        raise ValueError(
            f"{place}: column {name!r} has dates such as {categories[0]!r}, which are no numbers; store the days since "
            "one of them, or leave it out by naming the others as columns"
        )
    if not is_categorical and len(categories) > MOST_CATEGORIES:
        raise ValueError(
            f"{place}: column {name!r} has {len(categories)} different texts, more than {MOST_CATEGORIES} categories; "
            "leave it out by naming the others as columns, or name it as categorical"
        )
    return Encoder(name, categories)


def _names_of(column: pd.Series) -> pd.Series:
    """Return categories as texts: whole numbers alike, whether one file has them as 1 and another as 1.0."""
    texts = column.astype(str)
    values = column.dtype.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return texts.str.removesuffix(".0") if values.dtype.kind == "f" else texts


def is_number(column: pd.Series) -> bool:
    """Tell whether a column has numbers."""
    return bool(pd.api.types.is_numeric_dtype(column.dtype))


def inputs_of(rows: pd.DataFrame, encoders: Sequence[Encoder], place: Path) -> np.ndarray:
    """Return the features of some rows, shape [n, features].

    Raises
    ------
    ValueError
        If a number is not finite, or a column is no number here and was one in the training rows.
    """
    found: list[np.ndarray] = []
    for encoder in encoders:
        column = rows[encoder.name]
        if encoder.categories is None:
            if not is_number(column):
                raise ValueError(f"{place}: column {encoder.name!r} is numeric to train and not to test; make it alike")
            values = column.to_numpy(dtype=np.float64)
            if not np.isfinite(values).all():
                wrong = ~np.isfinite(values)
                row = first_row(rows, wrong)
                raise ValueError(
                    f"{place}: column {encoder.name!r} is {values[wrong][0]} in row {row}; give finite numbers"
                )
            found.append(values[:, None])
            continue
        texts = _names_of(column).to_numpy()
        one_hot = texts[:, None] == np.array(encoder.categories)
        if unknown := int((~one_hot.any(1)).sum()):
            logger.warning(
                "%s: %d test rows have a category of %r that no training row has; they count as none of its categories",
                place,
                unknown,
                encoder.name,
            )
        found.append(one_hot.astype(np.float64))
    return np.concatenate(found, axis=1)
