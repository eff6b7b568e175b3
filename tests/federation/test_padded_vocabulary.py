"""Models of the next token with more outputs than the data have tokens: the numbers of the library."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from fedsim.results.reading import read_result
from tests.data.test_tokenised import TOKENIZER, WORDS

OUTPUTS = 12
HERE = "tests.federation.test_padded_vocabulary"


def two_classes() -> Dataset:
    """Return vectors of two classes."""
    examples = Examples(torch.randn(40, 3, generator=torch.manual_seed(0)), torch.arange(40) % 2)
    return Dataset("two", examples, examples, ("no", "yes"))


def five_outputs(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a classifier that does not ask for the number of classes."""
    return nn.Linear(3, 5)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Save a tiny GPT-2 with four outputs that are no token, its tokenizer, and lines of text."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 12, "vocab_size": OUTPUTS, "pad_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    for value in model.parameters():
        nn.init.normal_(value, std=0.5, generator=torch.manual_seed(value.numel()))
    model.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text(json.dumps(special))
    (tmp_path / "lines.txt").write_text("a good film\nbad\na bad bad film\nfilm\n" * 20)
    place = str(tmp_path / "gpt2")
    return {
        "rounds": 1,
        "data": {"name": "lines", "path": str(tmp_path / "lines.txt"), "tokenizer": place},
        "partition": {"scheme": "iid"},
        "model": {"name": "huggingface", "path": place, "task": "next-token"},
        "barriers": {"every": 0},
    }


@pytest.mark.slow
def test_a_padded_vocabulary_has_the_library_s_loss_and_gradients(
    settings: dict[str, Any], tiny: Callable[..., Config]
) -> None:
    transformers = pytest.importorskip("transformers")
    federation = federation_of(tiny(**settings))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(settings["model"]["path"]).eval()
    examples = federation.data.dataset.train
    assert len(federation.data.dataset.classes) == len(WORDS) < OUTPUTS
    model, (inputs, targets) = federation.model().eval(), (examples.inputs[:7], examples.targets[:7])
    ours = federation.objective.mean(model(inputs), targets, targets != -100)
    ours.backward()
    whole = torch.cat([inputs, targets[:, -1:].clamp(min=0)], 1)
    labels = torch.cat([inputs[:, :1], targets], 1)
    expected = theirs(input_ids=whole, attention_mask=(whole != 0).long(), labels=labels).loss
    expected.backward()
    torch.testing.assert_close(ours, expected)
    gradients = dict(model.named_parameters())
    for key, value in theirs.named_parameters():
        torch.testing.assert_close(gradients[key].grad, value.grad, rtol=1e-4, atol=1e-6)
    assert theirs.lm_head.weight.grad[len(WORDS) :].abs().max() > 0  # outputs that are no token learn to be unlikely


@pytest.mark.slow
def test_a_run_with_a_padded_vocabulary_predicts_and_measures_over_all_outputs(
    settings: dict[str, Any], tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    metrics = ["perplexity", "macro-f1", "balanced-accuracy", "accuracy-by-class"]
    more = {"evaluation": {"metrics": metrics, "save_predictions": True}, "loss": {"class_weights": "balanced"}}
    folder = play(tiny(**settings, **more, local__label_smoothing=0.1))
    found = pd.read_parquet(folder.predictions).query("model == 'global'")
    logits = torch.tensor(np.stack([np.stack(each) for each in found["outputs"]]), dtype=torch.float64)
    targets = torch.tensor(np.stack(found["target"]))
    assert logits.shape[1] == OUTPUTS
    assert np.stack(found["prediction"]).tolist() == logits.argmax(1).tolist()
    real = targets != -100
    of_target = logits.log_softmax(1).gather(1, targets.clamp(min=0)[:, None])[:, 0][real]
    right = (logits.argmax(1) == targets)[real]
    table = read_result(folder).metrics
    last = table.query("model == 'global' and round == 1 and split == 'test' and client.isna()")
    values = last.set_index("metric")["value"]
    expected = {"perplexity": math.exp(-of_target.mean()), "loss": -of_target.mean(), "accuracy": right.double().mean()}
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), rel=1e-5)
    for name in {WORDS[label] for label in targets[real].tolist()}:
        of_class = targets[real] == WORDS.index(name)
        assert values[f"accuracy:{name}"] == pytest.approx(float(right[of_class].double().mean()))


def test_a_classifier_with_more_outputs_than_classes_is_refused(tiny: Callable[..., Config]) -> None:
    config = tiny(
        data={"name": f"{HERE}:two_classes"}, model={"name": f"{HERE}:five_outputs"}, partition={"scheme": "iid"}
    )
    with pytest.raises(ConfigError, match=r"\(2, 5\); it must be \(2, 2\), .* build it for the number of classes"):
        federation_of(config)


@pytest.mark.slow
def test_a_tokenizer_that_pads_with_another_token_than_the_model_masks_is_refused(
    settings: dict[str, Any], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    shutil.copytree(settings["model"]["path"], tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").unlink()
    alone = settings | {"data": settings["data"] | {"tokenizer": str(tmp_path / "tokenizer")}}
    assert federation_of(tiny(**alone)).data.dataset.pad_token == 0
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"pad_token": "[PAD]"', '"pad_token": "[SEP]"'))
    with pytest.raises(
        ConfigError, match=r"masks the token 0 as padding, and the data are padded with 2; set \[data\]"
    ):
        federation_of(tiny(**alone))
