"""Memory of clients that train adapters of one frozen transformer: one base, and the adapters of each client.

Run with ``python benchmarks/adapters.py``; see ``--help``. A BERT of MiniLM's sizes, 22.7 M parameters of random
weights, with LoRA of rank 8 on its queries and values, is trained by 2 clients and by 20, on the same examples; each
keeps its adapter and head. What a further client costs is compared with these, and with a copy of the model, which it
must not hold; it is less than what a run's memory differs by from one time to the next.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.frozen import memory_of
from benchmarks.machine import describe
from benchmarks.results import save, show
from fedsim.data import Dataset, Examples

WORDS, EXAMPLES, LENGTH, RANK, WIDTH, LAYERS = 30_522, 200, 16, 8, 384, 6
FEW, MANY = 2, 20
EXPERIMENT = """
rounds = {{rounds}}
clients = 20

[data]
name = "benchmarks.adapters:tokens"

[partition]
scheme = "iid"

[model]
name = "huggingface"
path = "{{model}}"
{adapter}
[local]
batch_size = 8

[strategy]
name = "local"

[barriers]
every = 0
"""
ADAPTER = f"""
[model.adapter]
kind = "lora"
rank = {RANK}
targets = "*query | *value"
"""
COLUMNS = ("clients", "held_mb", "each_further_mb", "adapter_mb", "base_mb", "base_copies_each")


def tokens() -> Dataset:
    """Return random texts of two classes."""
    stream = torch.manual_seed(0)
    inputs = torch.randint(1, WORDS, (EXAMPLES, LENGTH), generator=stream)
    train, test = (Examples(inputs[part], inputs[part, 0] % 2) for part in (slice(20, None), slice(20)))
    return Dataset("tokens", train, test, ("a", "b"), vocabulary=tuple(map(str, range(WORDS))))


def save_base(folder: str) -> int:
    """Save a model of MiniLM's sizes; return its bytes."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertModel(BertConfig(**sizes, vocab_size=WORDS, pad_token_id=0))
    model.save_pretrained(folder)
    return sum(value.nbytes for value in model.parameters())


def main() -> None:
    """Measure few clients and many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="length of the runs (default: 4)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        base = save_base(folder)
        experiment = EXPERIMENT.format(adapter=ADAPTER)
        held = {
            count: memory_of(folder, {"clients": str(count), "engine.workers": "1"}, rounds, experiment)
            for count in (FEW, MANY)
        }
    each = (held[MANY] - held[FEW]) / (MANY - FEW)
    adapter = 4 * (LAYERS * 2 * RANK * 2 * WIDTH + 2 * WIDTH + 2)
    row = {"each_further_mb": each / 1e6, "adapter_mb": adapter / 1e6, "base_mb": base / 1e6}
    row["base_copies_each"] = each / base
    rows = [{"clients": MANY, "held_mb": held[MANY] / 1e6, **row}, {"clients": FEW, "held_mb": held[FEW] / 1e6}]
    show(f"Memory of {MANY} clients with adapters of one model, against {FEW}", rows, COLUMNS)
    save("adapters", describe("cpu"), {"base_copies_each": 0.05}, rows)


if __name__ == "__main__":
    main()
