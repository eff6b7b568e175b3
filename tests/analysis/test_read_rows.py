"""Rows of results that no output depends on: they are found, left out, and change no number."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.read_rows import is_row_wise, partly_read
from fedsim.analysis.mixing.shared_calls import SharedCalls
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_
from fedsim.models.copies import loaded
from fedsim.models.layers import describe_
from fedsim.models.params import Params, state_of
from tests.analysis.test_shared_calls import recipes_of

LENGTH, WIDTH, WORDS = 6, 12, 40
Read = Callable[[Tensor, Tensor, Tensor], Tensor]


def texts(examples: int = 40) -> Tensor:
    """Return texts of different lengths, padded with 0."""
    stream = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, WORDS, (examples, LENGTH), generator=stream)
    lengths = torch.randint(1, LENGTH + 1, (examples, 1), generator=stream)
    return tokens * (torch.arange(LENGTH) < lengths)


def bert() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 20, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=WORDS, num_labels=3))


def gpt2() -> nn.Module:
    config = GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, vocab_size=WORDS, num_labels=3, pad_token_id=0)
    return GPT2ForSequenceClassification(config)


class Texts(nn.Module):
    """A model of transformers that gives its logits; nothing attends to padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits


class OfRows(nn.Module):
    """Attention and a linear layer, of which a classifier reads what ``read`` takes; numbers decide about nothing."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.choice, self.read = nn.Linear(WIDTH, 1), read

    def forward(self, tokens: Tensor) -> Tensor:
        if bool((tokens < 0).any()):  # so that it is no graph
            raise ValueError("tokens begin at 0")
        x = self.embed(tokens)
        x = x + (x @ x.mT).softmax(-1) @ x
        return self.head(self.read(self.block(x), self.choice(x), self.head.bias))


def first(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return rows[:, 0]


def mean(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return rows.mean(1)


def best(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return rows[torch.arange(len(rows)), scores.squeeze(-1).argmax(1)]


def unless_any_is_large(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return rows[:, 0] * torch.where((rows.abs() > 2).any(), 0.5, 1.0)


def by_its_bias(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return rows[:, int(bias[0] > 0)]


def states_of(model: nn.Module) -> list[Params]:
    streams = [torch.Generator().manual_seed(seed) for seed in range(3)]
    return [
        {key: value + 0.3 * torch.randn(value.shape, generator=stream) for key, value in state_of(model).items()}
        for stream in streams
    ]


def of_texts(made: Callable[[], nn.Module]) -> tuple[nn.Module, list[Params]]:
    """Return a transformer with LoRA in all its blocks, and states of all that trains."""
    torch.manual_seed(0)
    model = Texts(made())
    adapt_(model, Adapter(rank=2, targets="*.layer.*" if made is bert else "*.h.*"), texts())
    describe_(model, texts())
    return model.eval(), states_of(model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("made", [bert, gpt2])
def test_losses_of_transformers_are_those_of_each_model_alone(
    made: Callable[[], nn.Module], dtype: torch.dtype, tolerance: float
) -> None:
    model, states = of_texts(made)
    models = MixedModels(model.to(dtype), [{key: value.to(dtype) for key, value in state.items()} for state in states])
    recipes, data = recipes_of(models)[::7], Data(texts(), torch.arange(40) % 3)
    found, expected = models.evaluate(recipes, data), models._evaluate_whole(recipes, data)
    assert [len(partly) > 3 for partly in models._partly_read.values()] == [True]
    for recipe in recipes:
        assert found[recipe].loss == pytest.approx(expected[recipe].loss, rel=tolerance)
        torch.testing.assert_close(found[recipe].losses, expected[recipe].losses, rtol=1e-5, atol=10 * tolerance)
        assert torch.equal(found[recipe].errors, expected[recipe].errors)


def test_a_classifier_of_the_first_token_leaves_out_the_last_block_but_keys_and_values() -> None:
    model, _ = of_texts(bert)
    left_out = {path.removeprefix("model.bert.encoder.layer.") for path in partly_read(model, texts())}
    linear = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    parts = ("base_layer", "lora_A.default", "lora_B.default")
    norms = {"1.attention.output.LayerNorm", "1.output.LayerNorm"}
    assert left_out == {f"1.{each}.{part}" for each in linear for part in parts} | norms


@pytest.mark.parametrize(
    ("read", "left_out"),
    [(first, {"block"}), (mean, set()), (best, set()), (unless_any_is_large, set())],
)
def test_rows_that_an_output_may_depend_on_are_kept(read: Read, left_out: set[str]) -> None:
    torch.manual_seed(0)
    model = OfRows(read).eval()
    assert partly_read(model, texts()) == left_out
    models, data = MixedModels(model, states_of(model)), Data(texts(), torch.arange(40) % 3)
    recipes = [models.own(state) for state in range(3)]
    found, expected = models.evaluate(recipes, data), models._evaluate_whole(recipes, data)
    for recipe in recipes:
        torch.testing.assert_close(found[recipe].losses, expected[recipe].losses, rtol=1e-6, atol=1e-6)


def test_a_model_that_reads_other_rows_than_the_first_one_is_run_with_all_rows() -> None:
    torch.manual_seed(0)
    model = OfRows(by_its_bias).eval()
    states = states_of(model)
    for state, bias in zip(states, (-1, 1, -1), strict=True):
        state["head.bias"][0] = bias
    models = MixedModels(model, states)
    recipes = [models.own(state) for state in range(3)]
    shared = SharedCalls(model, models.parts, models._entries, 2**30, ["block"])
    found = dict(shared.outputs(recipes, texts()))
    for recipe, state in zip(recipes, states, strict=True):
        torch.testing.assert_close(found[recipe], loaded(model, state)(texts()), rtol=1e-6, atol=1e-6)


def test_modules_whose_rows_depend_on_one_another_are_not_row_wise() -> None:
    wise = (nn.Linear(3, 4), nn.LayerNorm(3), nn.RMSNorm(3), Conv1D(3, 4))
    others = (nn.LayerNorm((2, 3)), nn.RMSNorm((2, 3)), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.LSTM(3, 3))
    assert [is_row_wise(module) for module in (*wise, *others)] == [True] * len(wise) + [False] * len(others)
