"""Modules that look up what they gave: the same numbers as without, and less work."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Recipe
from fedsim.analysis.mixing.read_rows import partly_read
from fedsim.analysis.mixing.shared_calls import SharedCalls
from fedsim.models.adapter import Adapter, AdapterKind
from fedsim.models.adapters import adapt_
from fedsim.models.architectures.of_one_tensor import of_texts
from fedsim.models.layers import describe_
from fedsim.models.params import Params, state_of

INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = Data(INPUTS, torch.arange(40) % 3)
DEPTH = 2


class Block(nn.Module):
    """Two linear layers, of which the frozen part of the first is the same for all models with equal inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor, mask: Tensor, seen: list[Tensor]) -> Tensor:
        return x + self.down(self.up(x * mask).tanh())


class Untraceable(nn.Module):
    """Decides by a value, and makes a mask that each of its blocks takes."""

    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(DEPTH))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, mask, seen = x.clone(), torch.ones_like(x), []
        if float(x.sum()) > 1e9:
            return self.head(x)
        for block in self.blocks:
            x = block(x, mask, seen)
        return self.head(x + sum(seen))


class Transposed(Block):
    """Stores its first weight as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Conv1D(8, 6)


class Writing(Block):
    """Writes to what it takes."""

    def forward(self, x: Tensor, mask: Tensor, seen: list[Tensor]) -> Tensor:
        return x.mul_(0.9).add_(super().forward(x, mask, seen))


class Noting(Block):
    """Gives a part of its results by a list that it takes."""

    def forward(self, x: Tensor, mask: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(0.1 * x)
        return super().forward(x, mask, seen)


class Counting(Block):
    """Keeps something from one call to the next."""

    calls = 0

    def forward(self, x: Tensor, mask: Tensor, seen: list[Tensor]) -> Tensor:
        self.calls += 1
        return super().forward(x, mask, seen) * (1 + 0.01 * self.calls)


def made(block: Callable[[], nn.Module] = Block, kind: AdapterKind = "lora") -> tuple[nn.Module, list[Params]]:
    torch.manual_seed(0)
    model = Untraceable(block).double()
    adapt_(model, Adapter(kind, rank=2), INPUTS)
    describe_(model, INPUTS)
    states = [
        {key: torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).double() for key, value in own}
        for seed in range(3)
        for own in [state_of(model).items()]
    ]
    return model.eval(), states


def recipes_of(models: MixedModels) -> list[Recipe]:
    """Return the models themselves and, for each pair and part, the mix halfway."""
    own = [models.own(state) for state in range(3)]
    mixed = [
        tuple((min(a, b), max(a, b), 0.5) if k == part else a for k in range(len(models.parts)))
        for a, b in permutations(range(3), 2)
        if b != 1
        for part in range(0, len(models.parts), 2)
    ]
    return [*own, *mixed]


@pytest.mark.parametrize(
    ("block", "memory", "kind"),
    [
        (Block, 2**30, "lora"),
        (Block, 20_000, "lora"),
        (Block, 1, "lora"),
        (Block, 2**30, "dora"),
        (Block, 2**30, "ia3"),
        (Transposed, 2**30, "lora"),
        (Writing, 2**30, "lora"),
        (Noting, 2**30, "lora"),
        (Counting, 2**30, "lora"),
    ],
)
def test_losses_are_those_of_each_model_alone(block: Callable[[], nn.Module], memory: int, kind: AdapterKind) -> None:
    model, states = made(block, kind)
    models = MixedModels(model, states, threads=2, max_memory=memory)
    recipes = recipes_of(models)
    found, expected = models.evaluate(recipes, DATA), models._evaluate_whole(recipes, DATA)
    for recipe in recipes:
        torch.testing.assert_close(found[recipe].losses, expected[recipe].losses, rtol=1e-12, atol=1e-12)
        assert torch.equal(found[recipe].errors, expected[recipe].errors)


def test_factors_are_merged_where_the_layer_below_must_run_anyway() -> None:
    model, states = made()
    models = MixedModels(model, states)
    own = models.own(0)
    first = [k for k, part in enumerate(models.parts) if part.layer.startswith("blocks.0.up.lora_B")]
    mixed = [tuple((0, other, 0.5) if k in first else 0 for k in range(len(own))) for other in (1, 2)]
    shared = SharedCalls(model, models.parts, models._entries, 2**30)
    run: list[str] = []
    for path, module in shared._model.named_modules():
        if path.endswith("lora_A.default"):
            module.register_forward_hook(lambda *_, path=path: run.append(path))
    calls = []
    for _ in shared.outputs([own, *mixed], INPUTS):
        calls.append(run[:])
        run.clear()
    # Of the layer that changes the inputs are known, so that only its factors are run.
    assert [len(each) for each in calls] == [2 * DEPTH, 1, 1]


def test_what_comes_before_the_first_layer_that_differs_is_computed_once() -> None:
    calls = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(None)
            return super().forward(x)

    model, states = made()
    for block in model.blocks:
        for linear in (block.up, block.down):
            linear.base_layer.__class__ = Counted
    models = MixedModels(model, states)
    own = models.own(0)
    last = [k for k, part in enumerate(models.parts) if part.layer.startswith(f"blocks.{DEPTH - 1}.down.lora_B")]
    mixed = [tuple((0, other, 0.5) if k in last else 0 for k in range(len(own))) for other in (1, 2)]
    few = Data(INPUTS[:8], DATA.targets[:8])
    models.evaluate([own, *mixed], few)
    before = len(calls)
    models.evaluate([own, *mixed], few)
    assert len(calls) - before == 2 * DEPTH


def products_left(
    blocks: int, width: int, hidden: int, rank: int, clients: int, examples: int, length: int, read: int = 1
) -> tuple[float, float]:
    """Return the multiplications of a BERT with LoRA of queries and values, and those left after the first model.

    Left are the other clients' models and all ordered pairs, halfway, at each adapter.

    Parameters
    ----------
    read
        Number of tokens of each text that the classifier reads.
    """
    tokens, mixed = examples * length, clients * (clients - 1) * 2 * blocks
    attention, linear, last = 2 * length * width, 4 * width**2 + 2 * width * hidden, width**2 + 2 * width
    own = tokens * blocks * (linear + attention + 4 * rank * width) + examples * last
    # In its own block a mix computes a product of factors, attention, and what follows.
    above = width**2 + 2 * width * hidden
    first = tokens * (2 * rank * width + attention + above)
    later = tokens * (linear + attention) * (blocks - 1) / 2
    merges = clients * 2 * (blocks - 1) * rank * width**2
    # Below the first factors all models are alike: embeddings, and frozen products of the first block.
    alike = 3 * tokens * width**2
    # Of the last block only keys and values are read in all rows.
    unread = examples * (length - read)
    of_own, of_lower = unread * (width**2 + 2 * rank * width + above), unread * (width**2 + above)
    of_last = unread * (2 * rank * width / 2 + above)
    left = (clients - 1) * (own - alike - of_own) + merges
    left += mixed * (first + later + examples * last - (of_lower * (blocks - 1) + of_last) / blocks)
    return own, left


@pytest.mark.parametrize("read", [1, 6])
def test_mixes_of_queries_and_values_take_the_products_that_they_leave_and_no_others(read: int) -> None:
    blocks, width, hidden, rank, clients, tokens = 3, 12, 20, 2, 3, torch.arange(1, 31).view(5, 6)
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "intermediate_size": hidden}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, vocab_size=40)).eval()
    model = of_texts(model, 6, 40, predicts_next=False)
    adapt_(model, Adapter(rank=rank, targets="*.query | *.value"), tokens)
    describe_(model, tokens)
    states = [{key: value + 0.1 * client for key, value in state_of(model).items()} for client in range(clients)]
    models = MixedModels(model, states)
    paths = sorted({part.layer.partition(".lora_")[0] for part in models.parts if ".lora_" in part.layer})
    assert len(paths) == 2 * blocks
    mixed = [
        tuple((min(a, b), max(a, b), 0.5) if part.layer.startswith(path) else a for part in models.parts)
        for a, b in permutations(range(clients), 2)
        for path in paths
    ]
    partly = partly_read(model, tokens) if read == 1 else ()
    shared = SharedCalls(model, models.parts, models._entries, 2**30, partly)
    outputs = shared.outputs([*map(models.own, range(clients)), *mixed], tokens)
    next(outputs)  # whole, and backwards above its last attention, to see which rows are read
    with FlopCounterMode(display=False) as counter:
        assert len(list(outputs)) == clients - 1 + len(mixed)
    _, left = products_left(blocks, width, hidden, rank, clients, *tokens.shape, read)
    assert counter.get_total_flops() == 2 * left


@pytest.mark.parametrize(("read", "share"), [(1, 0.42), (32, 0.55)])
def test_the_documented_share_is_that_of_minilm(read: int, share: float) -> None:
    own, left = products_left(6, 384, 1536, 8, 4, 32, 32, read)
    assert round((own + left) / (own * (4 + 4 * 3 * 12)), 2) == share
