"""Texts as tokens of a model: by its own tokenizer, once, padded, truncated with a count."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fedsim.data import tokenised
from fedsim.data.huggingface import huggingface
from fedsim.data.lines import lines
from fedsim.data.table import table
from fedsim.training.targets import IGNORED

pytestmark = pytest.mark.slow
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "good", "bad", "film"]
AROUND = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
AROUND += [{"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": AROUND,
        "pair": AROUND,
        "special_tokens": {word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in WORDS[1:3]},
    },
    "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[UNK]"},
}
ROWS = [("web", 1.5, "a good film"), ("web", -2.0, "a bad bad film"), ("news", -0.5, "bad"), ("news", 0.0, "a film")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a tokenizer of eight words in the folder of a model, and a table of rated sentences."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(special))
    text = "\n".join(f"{source},{rating},{words}" for source, rating, words in ROWS * 3)
    (tmp_path / "rated.csv").write_text(f"source,rating,text\n{text}\n")
    (tmp_path / "lines.txt").write_text("a good film\n\nbad\n" * 3)
    return tmp_path


def read(folder: Path, **options: Any) -> Any:
    settings = {"target": ("rating",), "threshold": 0.0, "text": "text", "tokenizer": str(folder / "model")} | options
    return table(path=str(folder / "rated.csv"), **settings)


def test_a_column_of_texts_becomes_padded_tokens_and_a_threshold_makes_two_classes(folder: Path) -> None:
    dataset = read(folder, id=("source",))
    assert dataset.classes == ("<= 0", "> 0")
    assert dataset.vocabulary == tuple(WORDS)
    assert dataset.train.inputs[:3].tolist() == [[1, 4, 5, 7, 2, 0], [1, 4, 6, 6, 7, 2], [1, 6, 2, 0, 0, 0]]
    assert dataset.train.targets[:4].tolist() == [1, 0, 0, 0]
    assert dataset.ids["source"][:4].tolist() == [1, 1, 0, 0]


def test_a_tokenizer_of_the_hub_has_the_revision_behind_its_id_and_a_folder_any_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def library_options(path: str, revision: str | None = None, setting: str = "path") -> dict[str, Any]:
        asked.append((path, revision or "main"))
        raise ValueError("no network")

    monkeypatch.setattr(tokenised, "library_options", library_options)
    (folder / "model@home").mkdir()
    for written in ("org/name", "org/name@v1.0", str(folder / "model@home")):
        with pytest.raises(ValueError, match="no network"):
            read(folder, tokenizer=written)
    assert asked == [("org/name", "main"), ("org/name", "v1.0"), (str(folder / "model@home"), "main")]


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "files"])
def test_a_column_of_a_hugging_face_data_set_is_the_same_tokens_and_keeps_the_order_of_its_classes(
    folder: Path, saved: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": [words for *_, words in ROWS], "source": [source for source, *_ in ROWS], "label": [1, 0, 0, 1]}
    kinds = {"text": datasets.Value("string"), "source": datasets.Value("string")}
    if saved:
        kinds["label"] = datasets.ClassLabel(names=["poor", "fine"])
        datasets.Dataset.from_dict(rows, datasets.Features(kinds)).save_to_disk(folder / "rated")
    else:
        (folder / "rated").mkdir()
        pd.DataFrame(rows).to_csv(folder / "rated" / "train.csv", index=False)
    options: dict[str, Any] = {"text": "text", "tokenizer": str(folder / "model"), "test_share": 0.25}
    dataset = huggingface(path=str(folder / "rated"), id=("source",), **options)
    assert dataset.classes == (("poor", "fine") if saved else ("0", "1"))
    assert dataset.vocabulary == tuple(WORDS)
    found = torch.cat([dataset.train.inputs, dataset.test.inputs]).tolist()
    assert sorted(found) == sorted(read(folder).train.inputs[:4].tolist())
    assert len(dataset.ids["source"]) == len(dataset.train.targets) == 3
    for changed, message in (
        ({"tokenizer": ""}, "text needs tokenizer"),
        ({"text": "words"}, "has no column 'words'; its columns are: "),
        ({"text": "label", "target": "text"}, "column 'label' holds numbers; text must name a column of texts"),
        ({"inputs": ("source",)}, "inputs names 'source', and the inputs are the texts of 'text'"),
    ):
        with pytest.raises(ValueError, match=message):
            huggingface(path=str(folder / "rated"), **options | changed)


def test_texts_are_padded_by_what_the_model_masks(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "bert", "pad_token_id": 3}))
    assert read(folder).train.inputs[2].tolist() == [1, 6, 2, 3, 3, 3]


def test_texts_are_tokenised_once_and_truncated_with_a_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = read(folder, length=5)
    assert whole.train.inputs[1].tolist() == [1, 4, 6, 6, 2]  # which keeps its end
    assert "3 of 12 texts have more than 5 tokens and are truncated" in caplog.text
    monkeypatch.setattr("fedsim.data.tokenised._tokenizer", None)
    with caplog.at_level(logging.WARNING):
        again = read(folder, length=5)
    assert torch.equal(again.train.inputs, whole.train.inputs)
    with pytest.raises(TypeError):
        read(folder, length=4)  # which is not in the cache


def test_lines_predict_the_next_token_and_padding_does_not_count(folder: Path) -> None:
    dataset = lines(
        path=str(folder / "lines.txt"), tokenizer=str(folder / "model"), test_share=0.34, test_spacing="even"
    )
    assert dataset.train.inputs[:2].tolist() == [[1, 4, 5, 7], [1, 6, 2, 0]]
    assert dataset.train.targets[:2].tolist() == [[4, 5, 7, 2], [6, 2, IGNORED, IGNORED]]
    assert dataset.task == "next-token"
    assert dataset.classes == tuple(WORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": ""}, "text needs tokenizer"),
        ({"text": ""}, "tokenizer and length needs text"),
        ({"text": "none"}, "has no column 'none'; its columns are: source, rating, text"),
        (
            {"text": "rating", "target": ("source",), "threshold": None},
            "holds numbers; text must name a column of texts",
        ),
        ({"columns": ("source",)}, "columns names 'source', and the inputs are the texts"),
        ({"target": ("source",)}, "is not numeric, so that threshold = 0.0 cannot split it"),
        ({"tokenizer": "."}, "has no tokenizer that can be loaded"),
        ({"tokenizer": "./none"}, "tokenizer = './none' does not exist"),
    ],
)
def test_what_cannot_be_tokenised_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    with pytest.raises(ValueError, match=message) as error:
        read(folder, **options)
    assert "\n" not in str(error.value)
