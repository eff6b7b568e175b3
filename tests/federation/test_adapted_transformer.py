"""Whole runs of a transformer of the library with adapters of peft: engines, cohorts and resumed runs agree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.config import Config
from fedsim.experiment import run as experiment
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from tests.conftest import run_files, run_until
from tests.data.test_tokenised import ROWS, TOKENIZER, WORDS

pytestmark = pytest.mark.slow
# The server sends factors, and the weights below them; clients keep factors; clients keep the weights. The last
# resumes on other processes.
METHODS = [("FedEx-LoRA", "local"), ("FedSA-LoRA", "local"), pytest.param("FLoRA", "ray", marks=pytest.mark.ray)]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Save a tiny BERT of random weights, its tokenizer, and rated sentences."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(1)
    config = transformers.BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=12, pad_token_id=0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "bert" / "tokenizer_config.json").write_text(json.dumps(special))
    rows = "\n".join(f"{source},{rating},{words}" for source, rating, words in ROWS * 12)
    (tmp_path / "rated.csv").write_text(f"source,rating,text\n{rows}\n")
    data = {"name": "table", "path": str(tmp_path / "rated.csv"), "text": "text", "tokenizer": str(tmp_path / "bert")}
    adapter = {"kind": "lora", "rank": 2, "targets": "*query | *value"}
    return {
        "rounds": 3,
        "participation": 0.75,
        "partition": {"scheme": "iid"},
        "data": {**data, "target": ["rating"], "threshold": 0.0},
        "model": {"name": "huggingface", "path": str(tmp_path / "bert"), "adapter": adapter},
        "local": {"optimizer": "adamw", "lr": 0.01, "optimizer_state": "keep"},
        "barriers": {"every": 0},
    }


@pytest.mark.parametrize(("name", "engine"), METHODS)
def test_a_stopped_run_resumes_with_the_bytes_and_a_cohort_has_the_numbers_of_a_run_one_by_one(
    name: str, engine: str, settings: dict[str, Any], tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    settings["strategy"] = {"name": name}
    whole = play(tiny(**settings), "whole")
    stopped = run_until(tiny(**settings), RunFolder(whole.path.with_name("stopped")), 2)
    experiment.run(tiny(**settings, engine={"name": engine, "workers": 2}), stopped, lambda summary: None)
    assert run_files(stopped) == run_files(whole)
    cohort = play(tiny(**settings, engine__cohort=4), "cohort")
    values = (torch.tensor(each.metrics["value"].to_numpy()) for each in map(read_result, (cohort, whole)))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)
