"""Sentences with classes, and padded tags of words, from the data to the report's figures."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.data import Dataset, Examples
from fedsim.errors import ConfigError
from fedsim.federation.federation import federation_of
from fedsim.results.folder import RunFolder

HERE = "tests.federation.test_text_classification"
WORDS = tuple(f"word {word}" for word in range(50))


def sentences() -> Dataset:
    """Return sentences of which the words decide the class, and their sites."""
    stream = np.random.default_rng(0)
    targets = np.arange(160) % 3
    inputs = torch.from_numpy(stream.integers(15, size=(160, 8)) + 15 * targets[:, None])
    examples = Examples(inputs, torch.from_numpy(targets))
    train, test = (examples[torch.arange(start, end)] for start, end in ((0, 120), (120, 160)))
    return Dataset("sentences", train, test, ("a", "b", "c"), ids={"site": np.arange(120) % 4}, vocabulary=WORDS)


def tags() -> Dataset:
    """Return sentences of different lengths in which each word has a class and padding has none."""
    stream = np.random.default_rng(0)
    inputs = torch.from_numpy(stream.integers(50, size=(100, 6)))
    targets = torch.where(torch.arange(6) < 1 + torch.arange(100)[:, None] % 6, inputs % 3, -100)
    examples = Examples(inputs, targets)
    train, test = (examples[torch.arange(start, end)] for start, end in ((0, 70), (70, 100)))
    return Dataset("tags", train, test, ("a", "b", "c"), vocabulary=WORDS)


def unlabelled() -> Dataset:
    """Return sentences of four sites, of which the third has no labels."""
    found = sentences()
    found.train.targets[torch.from_numpy(found.ids["site"] == 2)] = -100
    return found


class Tagger(nn.Module):
    """An embedding and a classifier of each word."""

    def __init__(self, shape: tuple[int, ...], classes: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(vocabulary, 4), nn.Linear(4, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc(self.embedding(tokens)).transpose(1, 2)


def rows_of(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


SMALL = {
    "text-cnn": {"embedding": 6, "filters": 4},
    "char-lstm": {"hidden": 6, "predict": "last"},
    "gpt": {"depth": 1, "heads": 2, "width": 8, "predict": "last"},
}


@pytest.mark.parametrize("name", SMALL)
def test_models_of_text_get_the_vocabulary_and_classify_sentences(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(
        data={"name": f"{HERE}:sentences"},
        model={"name": name, **SMALL[name]},
        partition={"scheme": "natural"},
        local={"lr": 0.5, "batch_size": 8},
        rounds=1,
        barriers={"every": 1, "pairs": 1, "examples": 40},
    )
    shapes = [tuple(value.shape) for value in federation_of(config).initial.values()]
    assert shapes[0][0] == 50
    assert any(shape[0] == 3 for shape in shapes)
    folder = play(config)
    assert {row["n"] for row in rows_of(folder) if row["client"] is None} == {40}
    assert len(pd.read_parquet(folder.path / "barriers" / "round-00001.parquet"))


@pytest.mark.slow
def test_the_words_of_sentences_are_learnt(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    config = tiny(
        data={"name": f"{HERE}:sentences"},
        model={"name": "text-cnn", "embedding": 16, "filters": 8, "dropout": 0.0},
        partition={"scheme": "iid"},
        local={"lr": 0.5, "batch_size": 4, "epochs": 3},
        barriers__every=0,
        rounds=3,
    )
    final = [row["value"] for row in rows_of(play(config)) if row["client"] is None and row["metric"] == "accuracy"]
    assert final[-1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "fedrod", "fedas"])
def test_figures_of_padded_tags_count_their_targets_whatever_the_method(
    method: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(
        data={"name": f"{HERE}:tags"},
        model={"name": f"{HERE}:Tagger"},
        partition={"scheme": "dirichlet", "alpha": 1.0, "min_size": 5},
        strategy={"name": method},
        barriers__every=0,
    )
    rows = rows_of(play(config))
    assert {row["n"] for row in rows if row["client"] is None} == {int((tags().test.targets >= 0).sum())}
    assert np.isfinite([row["value"] for row in rows]).all()
    # An accuracy is a number of targets divided by their number.
    counted = [row["value"] * row["n"] for row in rows if row["metric"] == "accuracy"]
    assert counted == pytest.approx(np.rint(counted), abs=1e-6)


def test_a_client_without_a_target_that_counts_is_refused_before_the_run(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    # Its loss would be a mean over nothing, and so would the clients' mean.
    config = tiny(
        data={"name": f"{HERE}:unlabelled"},
        model={"name": "text-cnn", **SMALL["text-cnn"]},
        partition={"scheme": "natural"},
    )
    with pytest.raises(ConfigError, match="training set has no target at example 2, where all are -100; remove"):
        play(config)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_label_counts_are_of_the_targets_that_count(tiny: Callable[..., Config]) -> None:
    data = federation_of(tiny(data={"name": f"{HERE}:tags"}, model={"name": f"{HERE}:Tagger"}, clients=2)).data
    counted = data.heterogeneity().counts
    assert counted.totals.sum() == int((tags().train.targets >= 0).sum())


def test_what_a_model_changes_in_place_stays_as_it_is_for_others(tiny: Callable[..., Config]) -> None:
    data = federation_of(tiny(data={"name": f"{HERE}:tags"}, model={"name": f"{HERE}:Tagger"})).data
    before = [part.clone() for part in data.test()]
    for part in (*data.test(), *data.client(0).train, *data.client(0).test):
        part.fill_(1)
    assert all(torch.equal(*pair) for pair in zip(data.test(), before, strict=True))
