"""A table becomes a data set: standardised and encoded by its training rows alone."""

import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from fedsim.config import Config, choices
from fedsim.data.dataset import numbered
from fedsim.data.table import table
from fedsim.data.tasks import task_of
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result

ROWS = pd.DataFrame(
    {
        "age": np.arange(40.0) * 2,
        "colour": ["red", "green", "blue", "red"] * 10,
        "hospital": ["a", "b"] * 20,
        "ill": [0, 1] * 20,
        "price": np.linspace(0.5, 9.1, 40),
        "kind": ["cat", "dog", "dog", "cat"] * 10,
    }
)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    def write_and_read(rows: pd.DataFrame = ROWS, **options: Any) -> Any:
        rows.to_csv(tmp_path / "rows.csv", index=False)
        return table(path=str(tmp_path / "rows.csv"), **{"test_spacing": "even"} | options)

    return write_and_read


def test_numbers_are_standardised_and_texts_encoded_by_the_training_rows(read: Callable[..., Any]) -> None:
    data = read(target=("ill",), id=("hospital",), columns=("age", "colour"))
    is_test = np.arange(40) % 5 == 4  # a fifth, evenly spaced
    train = ROWS[~is_test]
    assert (len(data.train), len(data.test)) == (32, 8)
    features = pd.get_dummies(ROWS[["age", "colour"]], dtype=float)  # age, blue, green, red
    fitted = StandardScaler().fit(features[~is_test])
    for part, rows in ((data.train, features[~is_test]), (data.test, features[is_test])):
        np.testing.assert_allclose(data.normalise(part.inputs).numpy(), fitted.transform(rows), atol=1e-6)
    assert (data.train.targets.numpy() == train["ill"]).all()
    assert data.classes == ("0", "1")
    assert (data.ids["hospital"] == (train["hospital"] == "b")).all()


def test_what_recurs_every_five_rows_is_in_the_training_and_the_test_set(read: Callable[..., Any]) -> None:
    rows = pd.DataFrame({"light": np.tile(["a", "b", "c", "d", "e"], 200), "ill": np.arange(1000) % 2})
    data = read(rows, target=("ill",), test_spacing="random")
    assert data.test.inputs.sum(0).tolist() == pytest.approx([40] * 5, abs=4 * np.sqrt(200 * 0.2 * 0.8))
    assert read(rows, target=("ill",)).test.inputs.sum(0).tolist() == [0] * 4  # all are "e", and no training row is


def test_origins_that_are_numbers_are_in_the_order_of_their_size(read: Callable[..., Any]) -> None:
    numbers = np.arange(40) % 12 * 10
    mixed = ["ward", *map(str, numbers[1:])]
    data = read(ROWS.assign(site=numbers, dose=numbers / 4, mixed=mixed), target=("ill",), id=("site", "dose", "mixed"))
    is_train = np.arange(40) % 5 != 4
    for name in ("site", "dose"):
        assert data.ids[name].tolist() == (numbers[is_train] // 10).tolist()
    known = sorted(set(np.array(mixed)[is_train]))
    assert [known[rank] for rank in data.ids["mixed"]] == np.array(mixed)[is_train].tolist()


@pytest.mark.parametrize("kind", ["one file", "train and test"])
def test_origins_have_the_names_that_the_file_has(kind: str, tmp_path: Path) -> None:
    header = "ward,day,open,dose,age,ill\n"
    rows = [
        f"00{ward},2020-01-0{ward},{'true' if ward > 8 else 'false'},{ward}.50,{age},{age % 2}"
        for ward in (9, 7, 8)
        for age in range(10)
    ]
    text = header + "\n\n".join(rows)
    if kind == "one file":
        (tmp_path / "rows.csv").write_text(text)
    else:
        for part in ("train", "test"):
            (tmp_path / f"{part}.csv").write_text(text)
    place = tmp_path / "rows.csv" if kind == "one file" else tmp_path
    data = table(path=str(place), target=("ill",), id=("ward", "day", "open", "dose"), columns=("age",))
    assert data.origins == {
        "ward": ("007", "008", "009"),
        "day": ("2020-01-07", "2020-01-08", "2020-01-09"),
        "open": ("false", "true"),
        "dose": ("7.50", "8.50", "9.50"),
    }
    assert (data.ids["ward"] == data.ids["day"]).all()


def test_dates_of_a_parquet_file_are_named_as_dates(tmp_path: Path) -> None:
    days = pd.to_datetime(["2020-02-01", "2020-01-01"] * 20)
    ROWS.assign(day=days).to_parquet(tmp_path / "rows.parquet")
    data = table(path=str(tmp_path / "rows.parquet"), target=("ill",), id=("day",), columns=("age",))
    assert data.origins == {"day": ("2020-01-01", "2020-02-01")}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 9, 2, 10], [2, 1, 0, 2]),
        ([2.5, -1.0, 10.0], [1, 0, 2]),
        (["10", "9", "2"], [0, 2, 1]),
        (pd.Series([10, 9, 2], dtype="Int64"), [2, 1, 0]),
        (pd.Series([10, 9, 2], dtype=object), [2, 1, 0]),
        (pd.Series([10, "9", 2], dtype=object), [0, 2, 1]),
        (pd.Series([10, 9, 2]).astype("category"), [2, 1, 0]),
        (pd.Series(["b", "a", "b"]), [1, 0, 1]),
        (pd.to_datetime(pd.Series(["2020-02-01", "2020-01-01"]), utc=True), [1, 0]),
        ([], []),
    ],
)
def test_numbers_are_ranked_by_size_and_texts_as_texts(values: Any, expected: list[int]) -> None:
    assert numbered(values).tolist() == expected


@pytest.mark.parametrize(
    ("target", "task", "expected", "classes"),
    [
        (("kind",), "auto", "classification", ("cat", "dog")),
        (("price",), "auto", "regression", ()),
        (("ill",), "binary", "binary", ()),
        (("ill",), "regression", "regression", ()),
        (("price", "age"), "auto", "regression", ()),
    ],
)
def test_the_task_follows_from_the_target_or_is_declared(
    target: tuple[str, ...], task: str, expected: str, classes: tuple[str, ...], read: Callable[..., Any]
) -> None:
    data = read(target=target, task=task, columns=("colour",))
    assert task_of(data).name == expected
    assert data.classes == classes


def test_targets_have_memory_of_their_own(read: Callable[..., Any]) -> None:
    torch.set_warn_always(True)  # else torch warns once per process, perhaps in another test
    try:
        assert len(read(ROWS, target=("price",)).train.targets) == 32
    finally:
        torch.set_warn_always(False)


def test_large_numbers_keep_their_digits(read: Callable[..., Any]) -> None:
    times = 1_700_000_000 + np.arange(40)
    data = read(ROWS.assign(age=times), target=("ill",), columns=("age",))
    for each in (data, data.fitted_to(np.arange(0, 32, 2))):
        assert len(each.normalise(each.train.inputs).unique()) == 32


def test_a_folder_has_its_own_test_set_and_formats_agree(
    tmp_path: Path, read: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    one = read(target=("kind",))
    is_test = np.arange(40) % 5 == 4
    (tmp_path / "both").mkdir()
    ROWS[~is_test].to_parquet(tmp_path / "both" / "train.parquet", index=False)
    ROWS[is_test].to_csv(tmp_path / "both" / "test.tsv", sep="\t", index=False)
    two = table(path=str(tmp_path / "both"), target=("kind",))
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert torch.equal(one.test.inputs, two.test.inputs)
    other = ROWS[is_test].assign(colour="pink")
    other.to_csv(tmp_path / "both" / "test.tsv", sep="\t", index=False)
    with caplog.at_level(logging.WARNING):
        unknown = table(path=str(tmp_path / "both"), target=("kind",), columns=("colour",))
    known = table(path=str(tmp_path / "both"), target=("kind",), columns=("colour",)).train.inputs
    assert (unknown.test.inputs == known.min(0).values).all()  # as a row of no colour
    assert "8 test rows have a category of 'colour' that no training row has" in caplog.text


WRONG: dict[str, tuple[pd.DataFrame, dict[str, Any], str]] = {
    "missing": (ROWS, {"target": ("cost",)}, "has no column 'cost'; its columns are: age, colour"),
    "missing feature": (ROWS, {"target": ("ill",), "columns": ("hight",)}, "has no column 'hight'"),
    "empty cells": (
        ROWS.assign(age=[None, *range(39)]),
        {"target": ("ill",)},
        "'age' has no value in 1 of .*row 1 .*; fill",
    ),
    "infinite after test rows": (
        ROWS.assign(age=[*range(36), np.inf, *range(3)]),
        {"target": ("ill",)},
        "'age' is inf in row 37; give finite",
    ),
    "empty cell of a test row": (
        ROWS.assign(age=[*range(39), None]),
        {"target": ("ill",)},
        "'age' has no value in 1 of 8 rows, such as row 40",
    ),
    "infinite": (ROWS.assign(age=[np.inf, *range(39)]), {"target": ("ill",)}, "'age' is inf in row 1; give finite"),
    "not numeric": (
        ROWS.assign(age=["12,5", *map(str, range(39))]),
        {"target": ("ill",)},
        "'age' is not numeric: '12,5' is one of 1 texts among numbers",
    ),
    "texts": (
        pd.DataFrame({"text": [f"word {n}" for n in range(200)], "y": [0, 1] * 100}),
        {"target": ("y",)},
        "'text' has 160 different texts, more than 100 categories",
    ),
    "target among the features": (
        ROWS,
        {"target": ("ill",), "columns": ("age", "ill")},
        "columns names 'ill', which is",
    ),
    "feature twice": (ROWS, {"target": ("ill",), "columns": ("age", "age")}, "columns names 'age' twice; name each"),
    "target twice": (ROWS, {"target": ("price", "price")}, "target names 'price' twice"),
    "no feature": (
        ROWS,
        {"target": ("ill",), "columns": ("age",), "categorical": ("colour",)},
        "categorical names 'colour', which is no feature; features are: age",
    ),
    "no features": (ROWS[["ill"]], {"target": ("ill",)}, "no columns besides target and id"),
    "targets of texts": (ROWS, {"target": ("kind",), "task": "regression"}, "'kind' is not numeric, and targets of"),
    "class without training rows": (
        ROWS.assign(kind=["cat"] * 39 + ["owl"]),
        {"target": ("kind",)},
        "class 'owl' of 'kind' has no training row",
    ),
    "a number to predict": (
        ROWS.assign(ill=[0] * 39 + [231]),
        {"target": ("ill",)},
        "class '231' of 'ill' has no training row; add some, or, if it is a number .* task = 'regression'",
    ),
    "a category that pandas reads as no value": (
        ROWS.assign(colour=["None", "NA"] * 20),
        {"target": ("ill",), "columns": ("colour",)},
        r"no value in 32 of 32 rows, such as row 1 \(in .csv and .tsv, NA and None are no values\); fill",
    ),
    "share": (ROWS, {"target": ("ill",), "test_share": 1.0}, "test_share = 1.0 must be"),
    "few rows": (ROWS[:2], {"target": ("ill",)}, "2 rows, too few to set"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_learnt_from_is_one_line(name: str, read: Callable[..., Any]) -> None:
    rows, options, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        read(rows, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("\na,a,ill\n1,2,0\n3,4,1\n5,6,0\n".replace(",", "\t" if suffix == ".tsv" else ","))
    with pytest.raises(ValueError, match=r"rows\.\wsv has two columns named 'a'; give each a name of its own"):
        table(path=str(path), target="ill", test_share=0.4)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.xls").write_text("")
    for name in ("a.parquet", "b.csv", "c.xls"):
        with pytest.raises(ValueError, match=rf"{name} (is damaged or no table|ends in)") as error:
            table(path=str(tmp_path / name), target=("y",))
        assert "\n" not in str(error.value)


def test_a_run_learns_numbers_from_a_table_of_two_hospitals(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    rows = pd.DataFrame({"x": 50 + 10 * x, "unit": ["one", "two"] * 200, "y": 3 * x + np.tile([0, 1], 200)})
    rows["site"] = np.where(x > 0, "north", "south")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    config = tiny(
        clients=2,
        rounds=4,
        data={"name": "table", "path": str(tmp_path / "rows.csv"), "target": ["y"], "id": ["site"]},
        partition={"scheme": "natural"},
        barriers__every=0,
    )
    result = read_result(play(choices.resolve(config)))
    errors = result.of("global", "rmse", server=True)["value"].to_numpy()
    assert errors[-1] < 1 < rows["y"].std()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, "category"])
def test_categories_that_are_numbers_match_also_where_one_file_has_them_as_floats(
    dtype: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ward = np.arange(40) % 3
    ROWS[["ill"]].assign(ward=ward).to_parquet(tmp_path / "train.parquet")
    floats = pd.Series(ward.astype(np.float64)).astype(dtype)
    ROWS[["ill"]].assign(ward=floats).to_parquet(tmp_path / "test.parquet")
    data = table(path=str(tmp_path), target=("ill",), categorical=("ward",))
    assert data.test.inputs.equal(data.train.inputs)
    assert data.test.inputs.argmax(1).tolist() == ward.tolist()
    assert not caplog.records


def test_an_index_that_pandas_wrote_is_no_feature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ROWS.sort_values("ill").to_csv(tmp_path / "rows.csv")  # the first half has the even numbers
    options: dict[str, Any] = {"path": str(tmp_path / "rows.csv"), "target": ("ill",), "id": ("hospital",)}
    data = table(**options, test_spacing="even")
    assert data.shape == (1 + 3 + 1 + 2,)
    [record] = caplog.records
    assert "its first column has no name and another whole number in each row, as an index has" in record.message
    assert table(**options, columns=("Unnamed: 0", "age")).shape == (2,)
    np.testing.assert_array_equal(data.train.inputs[:, 0], ROWS.sort_values("ill")["age"][np.arange(40) % 5 != 4])


def test_a_column_without_a_name_elsewhere_is_a_feature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ROWS[["age", "ill"]].assign(other=np.random.default_rng(0).permutation(len(ROWS)) * 7)
    rows[["age", "other", "ill"]].to_csv(tmp_path / "rows.csv", index=False, header=["age", "", "ill"])
    assert table(path=str(tmp_path / "rows.csv"), target=("ill",)).shape == (2,)
    rows[["other", "age", "ill"]].to_csv(tmp_path / "rows.csv", index=False, header=["", "age", "ill"])
    assert table(path=str(tmp_path / "rows.csv"), target=("ill",), id=("Unnamed: 0",)).shape == (1,)
    assert not caplog.records


def test_a_parquet_file_says_what_is_categorical_and_what_a_number(tmp_path: Path) -> None:
    rows = ROWS[["ill"]].assign(ward=pd.Categorical((np.arange(len(ROWS)) % 3).astype(str)))
    rows["dose"] = [Decimal(k % 7) / 4 for k in range(len(ROWS))]
    rows.to_parquet(tmp_path / "rows.parquet")
    data = table(path=str(tmp_path / "rows.parquet"), target=("ill",), test_spacing="even")
    assert data.shape == (3 + 1,)
    np.testing.assert_array_equal(data.test.inputs[:, 3], (np.arange(len(ROWS)) % 7 / 4)[np.arange(len(ROWS)) % 5 == 4])


@pytest.mark.parametrize("written", ["{:.0f},5", "{:,.2f} %", "{:.0f}%"])
def test_numbers_in_another_notation_are_no_categories(written: str, read: Callable[..., Any]) -> None:
    rows = ROWS.assign(price=[written.format(value * 1000) for value in ROWS["price"]])
    with pytest.raises(ValueError, match=r"column 'price' has numbers such as '9.*' stored as text; store"):
        read(rows, target=("ill",), columns=("age", "price"))
    categories = read(rows, target=("ill",), columns=("price",), categorical=("price",))
    assert categories.shape == (32,)


def test_digits_that_a_parquet_file_has_as_texts_are_not_guessed(tmp_path: Path) -> None:
    ROWS.assign(age=ROWS["age"].astype(int).map("{:02d}".format)).to_parquet(tmp_path / "rows.parquet")
    options: dict[str, Any] = {"path": str(tmp_path / "rows.parquet"), "target": ("ill",), "columns": ("age",)}
    with pytest.raises(ValueError, match=r"column 'age' has numbers such as .* stored as text; store them"):
        table(**options)
    assert table(**options, categorical=("age",)).shape == (32,)


@pytest.mark.parametrize(
    ("name", "separator", "message"),
    [
        ("a.csv", ";", "has ';' between its columns, not ','; save it with ','"),
        ("a.csv", "\t", r"has '\\t' between its columns, not ','; name the file .tsv"),
        ("a.tsv", ",", r"has ',' between its columns, not '\\t'; name the file .csv"),
    ],
)
def test_another_separator_is_named(tmp_path: Path, name: str, separator: str, message: str) -> None:
    ROWS.to_csv(tmp_path / name, sep=separator, decimal="." if separator == "," else ",", index=False)
    with pytest.raises(ValueError, match=message):
        table(path=str(tmp_path / name), target=("ill",))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("written", ["", "%d.%m.%Y", "%Y/%m/%d %H:%M"])
def test_dates_are_named(tmp_path: Path, suffix: str, written: str) -> None:
    days = pd.Series(pd.date_range("2020-01-01", periods=200))
    rows = pd.DataFrame({"came": days.dt.strftime(written) if written else days, "ill": [0, 1] * 100})
    path = tmp_path / f"a.{suffix}"
    rows.to_csv(path, index=False) if suffix == "csv" else rows.to_parquet(path)
    with pytest.raises(ValueError, match=r"'came' has dates such as '.*', which are no numbers; store the days"):
        table(path=str(path), target=("ill",))
