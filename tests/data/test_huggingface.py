"""Data sets of Hugging Face in local folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.config.choices import CATALOGUES
from fedsim.config.tables import DataConfig
from fedsim.data.huggingface import huggingface

datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
KINDS = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 5, 4, 3), dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=KINDS),
            "site": datasets.Value("string"),
            "text": datasets.Value("string"),
        }
    )
    splits = {
        split: datasets.Dataset.from_dict(
            {
                "image": [Image.fromarray(each) for each in pixels(n, n)],
                "label": [index % 3 for index in range(n)],
                "site": ["ab"[index % 2] for index in range(n)],
                "text": ["a word"] * n,
            },
            features=kinds,
        )
        for split, n in (("train", 20), ("test", 6))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pictures")
    return str(tmp_path / "pictures")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    numbers = np.random.default_rng(0).random((20, 3))
    table = {"height": numbers[:, 0], "both": list(numbers[:, 1:]), "age": range(20), "price": numbers.sum(1)}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "rows")
    return str(tmp_path / "rows")


def test_pictures_have_the_names_of_their_classes_and_the_origin_of_each(pictures: str) -> None:
    found = huggingface(path=pictures, id=("site",))
    assert torch.equal(found.train.inputs, torch.from_numpy(pixels(20, 20)).permute(0, 3, 1, 2))
    assert torch.equal(found.test.inputs, torch.from_numpy(pixels(6, 6)).permute(0, 3, 1, 2))
    assert found.train.targets.tolist() == [index % 3 for index in range(20)]
    assert found.classes == tuple(KINDS)
    assert found.ids["site"].tolist() == [0, 1] * 10
    assert huggingface(path=pictures, mode="L", size=8).shape == (1, 8, 8)


def test_origins_that_are_numbers_are_in_the_order_of_their_size(rows: str) -> None:
    found = huggingface(path=rows, target="price", inputs=("height",), id=("age",))
    assert found.ids["age"].tolist() == list(range(16))
    assert found.origins["age"] == tuple(map(str, sorted(map(int, found.origins["age"]))))


def test_origins_have_the_names_of_labels(pictures: str) -> None:
    found = huggingface(path=pictures, id=("site",))
    values = datasets.load_from_disk(pictures)["train"]
    names = getattr(values.features["site"], "names", None) or sorted(map(str, set(values["site"])))
    assert found.origins == {"site": tuple(names)}


def test_large_whole_numbers_keep_their_digits_and_a_missing_origin_is_named(tmp_path: Path) -> None:
    times = 1_700_000_000 + np.arange(20)
    table = {"time": times, "age": np.arange(20, dtype=np.float32), "label": [0, 1] * 10, "site": ["a", None] * 10}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "times")
    for inputs in (("time",), ("age", "time")):
        found = huggingface(path=str(tmp_path / "times"), inputs=inputs)
        normalised = found.normalise(found.train.inputs)[:, -1]
        assert (normalised.diff() > 0.1).all()  # float32 has 128 seconds between two numbers of this size
    with pytest.raises(ValueError, match="column 'site' has no value at example 1; give each its origin"):
        huggingface(path=str(tmp_path / "times"), inputs=("age",), id=("site",))


def test_a_text_may_be_the_class(pictures: str) -> None:
    assert huggingface(path=pictures, target="site").classes == ("a", "b")


def test_a_single_split_loses_evenly_spaced_examples_to_the_test_set(rows: str) -> None:
    found = huggingface(path=rows, target="price", inputs=("height", "both"), test_share=0.25, test_spacing="even")
    values = torch.from_numpy(np.random.default_rng(0).random((20, 3)))
    is_test = torch.arange(20) % 4 == 3
    assert torch.equal(found.train.inputs, values[~is_test])
    assert torch.allclose(found.test.targets, values[is_test].sum(1).float())
    assert huggingface(path=rows, target="price").shape == (4,)  # all columns of numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "all"}, r"has no split 'all'; its splits are: train, test; set \[data\] train"),
        ({"target": "kind"}, "has no column 'kind'; its columns are: image, label, site, text; set"),
        ({"inputs": ["text"]}, "column 'text' holds string, no pictures or numbers; name a column of texts as "),
        ({"inputs": ["image", "site"]}, "inputs name 'image', which holds pictures, and others"),
        ({"inputs": ["image"], "target": "image"}, "name a column twice"),
        ({"size": 0}, "size = 0 must be from 1 to 4096 pixels"),
    ],
)
def test_what_a_data_set_lacks_is_named(pictures: str, options: dict[str, Any], message: str) -> None:
    choice = DataConfig.model_validate({"name": "huggingface", "path": pictures} | options)
    with pytest.raises(ValueError, match=message):
        CATALOGUES["data"].make(choice, task="auto")


def test_a_damaged_folder_and_a_file_are_named(pictures: str, tmp_path: Path) -> None:
    for file in (tmp_path / "pictures" / "train").glob("*.arrow"):
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"pictures cannot be loaded .*; correct the folder, or save it again"):
        huggingface(path=pictures)
    (tmp_path / "rows.csv").write_text("a,label\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv is no folder; for a CSV or parquet file use .*'table'"):
        huggingface(path=str(tmp_path / "rows.csv"))
    with pytest.raises(FileNotFoundError, match="path = '/no where' does not exist"):
        huggingface(path="/no where")
