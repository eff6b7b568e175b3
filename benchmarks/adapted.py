"""Layer-wise barriers of adapters: MiniLM with LoRA, or a BERT of its size with random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.analysis import Data, Models, barriers
from fedsim.analysis.mixing.groups import named_groups
from fedsim.analysis.mixing.mixes import Mix, list_mixes
from fedsim.lazy import Place
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_
from fedsim.models.architectures.huggingface import huggingface
from fedsim.models.layers import Layers, describe_
from fedsim.models.params import Params, state_of

CLIENTS, RANK, TOKENS, VOCABULARY = 4, 8, 32, 30522
# Layers that get an adapter, by the name of the case.
TARGETS = {"query and value": "*.query | *.value", "all linear layers of the blocks": "*.encoder.layer.*"}
SIZE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def adapted_model(folder: Path | None, targets: str, scratch: Path) -> tuple[nn.Module, str]:
    """Return MiniLM from its folder, or a BERT of its size from a seed if none is given, with LoRA; and its name."""
    torch.manual_seed(0)
    name = "MiniLM"
    if folder is None:
        folder, name = scratch, "BERT of MiniLM's size with random weights"
        config = Place("transformers", "BertConfig").load()(**SIZE)
        Place("transformers", "BertForSequenceClassification").load()(config).save_pretrained(folder)
    model = huggingface((TOKENS,), 2, path=str(folder), vocabulary=VOCABULARY)
    inputs = tokens(2)
    adapt_(model, Adapter(rank=RANK, targets=targets), inputs)
    describe_(model, inputs)
    return model.eval(), name


def tokens(examples: int) -> torch.Tensor:
    """Return texts of random tokens, none of them padding."""
    return torch.randint(1000, VOCABULARY, (examples, TOKENS), generator=torch.Generator().manual_seed(1))


def client_states(model: nn.Module) -> list[Params]:
    """Return states with factors and heads near those of the model."""
    streams = [torch.Generator().manual_seed(client) for client in range(CLIENTS)]
    return [
        {key: value + 0.02 * torch.randn(value.shape, generator=stream) for key, value in state_of(model).items()}
        for stream in streams
    ]


def mixes_of(model: nn.Module) -> list[Mix]:
    """Return all ordered pairs of clients, halfway, at each adapted layer."""
    return list(list_mixes(named_groups(Layers.of(model), "adapters"), CLIENTS, "pairs", (0.5,)))


def table_of(model: nn.Module, states: Sequence[Params], data: Data, threads: int) -> Any:
    """Measure them."""
    models = Models(model, states, threads=threads)
    return barriers(models, data, groups="adapters", against="pairs", ts=(0.5,), references=("mean_ends", "chord"))
