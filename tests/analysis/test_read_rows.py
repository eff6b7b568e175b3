"""Rows of results that no output depends on: they are found, left out, and change no number."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from fedsim.analysis.data import Data
from fedsim.analysis.mixing import read_rows
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.read_rows import is_row_wise, partly_read
from fedsim.analysis.mixing.shared_calls import SharedCalls
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_
from fedsim.models.architectures.of_one_tensor import of_texts
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


def positive(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return (scores.relu() * rows).mean(1)


def unsaturated(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return (nn.functional.hardtanh(scores, -0.5, 0.5) * rows).mean(1)


def largest(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.max_pool1d(rows.mT, LENGTH).squeeze(-1)


def shares(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return ((scores.relu() / scores.relu().sum(1, keepdim=True)).nan_to_num(0.0) * rows).sum(1)


def signs(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    return (scores.sign() * rows).mean(1)


def copied(rows: Tensor, scores: Tensor, bias: Tensor) -> Tensor:
    copies = torch.zeros(scores.shape[:2])
    with torch.no_grad():
        copies[:] = scores[..., 0]
    return rows[torch.arange(len(rows)), copies.argmax(1)] + rows.mean(1) + scores[:, 0]


def states_of(model: nn.Module) -> list[Params]:
    streams = [torch.Generator().manual_seed(seed) for seed in range(3)]
    return [
        {key: value + 0.3 * torch.randn(value.shape, generator=stream) for key, value in state_of(model).items()}
        for stream in streams
    ]


def with_adapters(made: Callable[[], nn.Module]) -> tuple[nn.Module, list[Params]]:
    """Return a transformer with LoRA in all its blocks, and states of all that trains."""
    torch.manual_seed(0)
    model = made()
    model = of_texts(model, texts().shape[1], int(texts().max()) + 1, predicts_next=False)
    adapt_(model, Adapter(rank=2, targets="*.layer.*" if made is bert else "*.h.*"), texts())
    describe_(model, texts())
    return model.eval(), states_of(model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("made", [bert, gpt2])
def test_losses_of_transformers_are_those_of_each_model_alone(
    made: Callable[[], nn.Module], dtype: torch.dtype, tolerance: float
) -> None:
    model, states = with_adapters(made)
    models = MixedModels(model.to(dtype), [{key: value.to(dtype) for key, value in state.items()} for state in states])
    recipes, data = recipes_of(models)[::7], Data(texts(), torch.arange(40) % 3)
    found, expected = models.evaluate(recipes, data), models._evaluate_whole(recipes, data)
    assert [len(partly) > 3 for partly, _ in models._lookup.values()] == [True]
    for recipe in recipes:
        assert found[recipe].loss == pytest.approx(expected[recipe].loss, rel=tolerance)
        torch.testing.assert_close(found[recipe].losses, expected[recipe].losses, rtol=1e-5, atol=10 * tolerance)
        assert torch.equal(found[recipe].errors, expected[recipe].errors)


def test_a_classifier_of_the_first_token_leaves_out_the_last_block_but_keys_and_values() -> None:
    model, _ = with_adapters(bert)
    left_out = {path.removeprefix("bert.encoder.layer.") for path in partly_read(model, texts())}
    linear = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    parts = ("base_layer", "lora_A.default", "lora_B.default")
    norms = {"1.attention.output.LayerNorm", "1.output.LayerNorm"}
    assert left_out == {f"1.{each}.{part}" for each in linear for part in parts} | norms


@pytest.fixture
def all_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows be left out of these models too, as if their code were a library's."""
    monkeypatch.setattr(read_rows, "KNOWN", (*read_rows.KNOWN, "tests"))


@pytest.mark.usefixtures("all_is_known")
@pytest.mark.parametrize("order", ["own first", "head last", "one at a time"])
@pytest.mark.parametrize(
    ("read", "left_out"),
    [
        (first, {"block"}),
        (positive, {"choice"}),
        (unsaturated, {"choice"}),
        (largest, {"block"}),
        *((each, set()) for each in (mean, best, unless_any_is_large, shares, signs, copied)),
    ],
)
def test_losses_are_those_of_models_that_compute_all_rows(read: Read, left_out: set[str], order: str) -> None:
    torch.manual_seed(0)
    model = OfRows(read).eval()
    assert partly_read(model, texts()) == left_out
    check_losses(model, order)


@pytest.mark.usefixtures("all_is_known")
@pytest.mark.parametrize("order", ["own first", "head last", "one at a time"])
def test_models_that_make_numbers_of_left_out_rows_are_evaluated_whole(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_rows, "HIDE_NAN", frozenset())
    torch.manual_seed(0)
    model = OfRows(shares).eval()
    assert partly_read(model, texts()) == {"choice"}
    assert [lookup for lookup, _ in check_losses(model, order)._lookup.values()] == [None]


def check_losses(model: nn.Module, order: str) -> MixedModels:
    """Compare mixed models with those of each model alone: the states, of which one has another's head, and mixes."""
    models, data = MixedModels(model, states_of(model)), Data(texts(), torch.arange(40) % 3)
    head = tuple(1 if part.layer.startswith("head") else 0 for part in models.parts)
    recipes = [*recipes_of(models), head]
    if order == "head last":
        recipes = [models.own(0), models.own(1), head]
    expected = models._evaluate_whole(recipes, data)
    batches = [[head], [models.own(0)], *([recipe] for recipe in recipes), recipes]
    for some in batches if order == "one at a time" else [recipes]:
        found = models.evaluate(some, data)
        for recipe in some:
            torch.testing.assert_close(found[recipe].losses, expected[recipe].losses, rtol=1e-5, atol=1e-6)
    return models


class Own(nn.LayerNorm):
    """A layer of a user's own."""


def test_rows_are_left_out_of_models_of_libraries_alone() -> None:
    assert partly_read(OfRows(first).eval(), texts()) == set()
    model, _ = with_adapters(bert)
    hook = model.bert.register_forward_hook(lambda module, inputs, result: None)
    assert partly_read(model, texts()) == set()
    hook.remove()
    assert len(partly_read(model, texts())) > 3
    model.bert.encoder.layer[0].output.LayerNorm.__class__ = Own
    assert partly_read(model, texts()) == set()


def test_rows_are_left_out_only_once_it_is_checked_for_each_module() -> None:
    model, states = with_adapters(bert)
    models, data = MixedModels(model, states), Data(texts(), torch.arange(40) % 3)
    above = tuple(1 if part.layer.startswith("classifier") else 0 for part in models.parts)
    assert above != models.own(0)
    models.evaluate([models.own(0), above], data)
    assert not models._lookup
    models.evaluate([models.own(0), above, models.own(1), above], data)
    assert [lookup for lookup, _ in models._lookup.values()] == [partly_read(model, texts())]


@pytest.mark.parametrize(
    ("read", "bias", "passes"),
    [
        (first, 0.0, [3, 3, 3]),
        # NaN in the second model: run again, and so is no other; from the second batch on, none.
        (largest, 0.0, [4, 3, 3]),
        (first, -torch.inf, [3, 3, 3]),
    ],
)
def test_models_are_run_again_only_where_left_out_rows_are_read(read: Read, bias: float, passes: list[int]) -> None:
    torch.manual_seed(0)
    model = OfRows(read).eval()
    states = states_of(model)
    for state in states:
        state["head.bias"][0] += bias
    models = MixedModels(model, states)
    shared = SharedCalls(model, models.parts, models._entries, 2**30, ["block"])
    runs: list[None] = []
    shared._model.register_forward_pre_hook(lambda *_: runs.append(None))
    counts = []
    for _ in passes:
        runs.clear()
        for recipe, outputs in shared.outputs([models.own(state) for state in range(3)], texts()):
            torch.testing.assert_close(outputs, loaded(model, states[recipe[0]])(texts()), rtol=1e-5, atol=1e-6)
        counts.append(len(runs))
    assert counts == passes


@pytest.mark.parametrize("biases", [(-1, 1, -1), (-1, -1, 1)])
def test_a_model_that_reads_other_rows_than_the_first_one_is_run_with_all_rows(biases: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = OfRows(by_its_bias).eval()
    states = states_of(model)
    for state, bias in zip(states, biases, strict=True):
        state["head.bias"][0] = bias
    models = MixedModels(model, states)
    # The last one has all but its head of a model that is run with rows left out.
    heads = [part.layer.startswith("head") for part in models.parts]
    recipes = [models.own(0), models.own(1), tuple(2 if is_head else 1 for is_head in heads)]
    shared = SharedCalls(model, models.parts, models._entries, 2**30, ["block"])
    found = dict(shared.outputs(recipes, texts()))
    assert shared._again == 1
    for recipe in recipes:
        torch.testing.assert_close(found[recipe], models.build(recipe)(texts()), rtol=1e-5, atol=1e-5)


def test_modules_whose_rows_depend_on_one_another_are_not_row_wise() -> None:
    wise = (nn.Linear(3, 4), nn.LayerNorm(3), nn.RMSNorm(3), Conv1D(3, 4))
    others = (nn.LayerNorm((2, 3)), nn.RMSNorm((2, 3)), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.LSTM(3, 3))
    assert [is_row_wise(module) for module in (*wise, *others)] == [True] * len(wise) + [False] * len(others)
