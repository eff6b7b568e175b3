"""Layer-wise barriers: time against one state-dict load and one pass for each mixed model, as in the paper's code.

Run with ``python benchmarks/barriers.py``; ``--quick`` takes few examples and writes nothing. The plain way is timed on
some of the mixed models, which all cost the same, and scaled to their number.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import adapted
from benchmarks.job import make_model
from benchmarks.machine import describe, gemm_limit, processors
from benchmarks.results import save, show
from benchmarks.timing import seconds_of, take_turns
from fedsim.analysis import Data, Models, barriers
from fedsim.analysis.mixing.groups import named_groups
from fedsim.analysis.mixing.mixes import Mix, list_mixes
from fedsim.analysis.samples.per_example import REFERENCES
from fedsim.data import DATA
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.training import SGD, LocalPlan, train_
from partitions import PARTITIONS

PLAIN_BATCH = 256
PLAIN_MODELS = 6  # number of mixed models on which the plain way is timed
TOLERANCE = 0.01
FULL_SET = ("layers", "full", "cumulative-shallow", "cumulative-deep")
# Without the reference that needs the models at t = 1, which the plain way would also evaluate.
NO_SWAPS = tuple(name for name in REFERENCES if name != "swap_ends")
COLUMNS = (
    "case",
    "mixed_models",
    "examples",
    "plain_seconds",
    "seconds",
    "others_took",
    "faster_by",
    "flop_over_minimum",
    "plain_flop_over_minimum",
    "gflop_per_s",
    "of_limit",
    "examples_used",
    "rows_within",
    "largest_error",
)


@dataclass(frozen=True)
class Case:
    """A measurement of all ordered pairs of clients."""

    name: str
    model: str
    clients: int
    groups: Sequence[str]
    ts: Sequence[float]
    examples: int
    swaps: bool = False
    tolerance: float | None = None

    @property
    def title(self) -> str:
        """Name of the case in the table."""
        return f"{self.model}, {self.clients} clients: {self.name}"


CASES = (
    Case("layers, t = 1/2", "cnn", 6, ("layers",), (0.5,), 1000),
    Case("layers, t = 1/2 and 1 (swaps)", "cnn", 6, ("layers",), (0.5,), 1000, swaps=True),
    Case("full set, t = .1 .3 .5 .7 .9", "cnn", 4, FULL_SET, (0.1, 0.3, 0.5, 0.7, 0.9), 1000),
    Case("full set, t = 0 1/4 1/2 3/4 1", "cnn", 4, FULL_SET, (0.0, 0.25, 0.5, 0.75, 1.0), 1000),
    Case("layers, t = 1/2", "resnet18", 4, ("layers",), (0.5,), 500),
    Case("layers, t = 1/2, tolerance 0.01", "cnn", 5, ("layers",), (0.5,), 4000, tolerance=TOLERANCE),
    Case("layers, t = 1/2, tolerance 0.01", "resnet18", 3, ("layers",), (0.5,), 4000, tolerance=TOLERANCE),
)


def trained_clients(name: str, clients: int, device: str) -> tuple[nn.Module, list[Params]]:
    """Train a model per client for two epochs on 600 examples each, with Dirichlet(0.3) shares of the classes."""
    data = DATA["fashion-mnist"]()
    chosen = np.random.default_rng(0).permutation(len(data.train))[: 600 * clients]
    held = PARTITIONS["dirichlet"](data.labels[chosen], clients, np.random.default_rng(1), alpha=0.3)
    model, states = make_model(name).to(device), []
    for client in range(clients):
        own = copy.deepcopy(model)
        examples = data.train[torch.from_numpy(chosen[held[client]])]
        inputs, targets = data.normalise(examples.inputs).to(device), examples.targets.to(device)
        train_(own, inputs, targets, LocalPlan(), SGD(epochs=2, lr=0.05), np.random.default_rng(client))
        states.append(copy.deepcopy(own.state_dict()))
    return model, states


def plain_loss(model: nn.Module, states: Sequence[Params], layers: Layers, mix: Mix, loader: DataLoader[Any]) -> float:
    """Mix a state dict, load it, and evaluate the whole model."""
    keys = set(layers.keys(mix.layers))
    state = {
        key: (1 - mix.t) * value + mix.t * states[mix.other][key] if key in keys else value
        for key, value in states[mix.base].items()
    }
    model.load_state_dict(state)
    total, n = 0.0, 0
    device = next(model.parameters()).device
    with torch.no_grad():
        for inputs, targets in loader:
            outputs = model(inputs.to(device))
            total += cross_entropy(outputs, targets.to(device), reduction="sum").item()
            n += len(targets)
    return total / n


def examples_of(case: Case) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a case."""
    data = DATA["fashion-mnist"]()
    test = data.test[torch.from_numpy(np.random.default_rng(2).permutation(len(data.test))[: case.examples])]
    return data.normalise(test.inputs).contiguous(), test.targets


def both_ways(
    evaluate_some: Callable[[], list[float]],
    evaluate_all: Callable[[], pd.DataFrame],
    models: int,
    repeats: int,
    device: str = "cpu",
) -> tuple[list[float], pd.DataFrame, dict[str, float]]:
    """Time the plain way, on some of the models, and fedsim, in turn; return what both give, and their figures."""
    found: dict[str, Any] = {}

    def timed(name: str, evaluate: Callable[[], Any], threads: int) -> float:
        torch.set_num_threads(threads)
        return seconds_of(lambda: found.update({name: evaluate()}), device)

    def plain() -> float:
        return timed("plain", evaluate_some, processors()) / len(found["plain"]) * models

    samples = take_turns({"plain": plain, "fedsim": lambda: timed("fedsim", evaluate_all, 1)}, repeats)
    plain_seconds, figures = samples["plain"].figures()["seconds"], samples["fedsim"].figures()
    figures = {"plain_seconds": plain_seconds} | figures | {"faster_by": plain_seconds / figures["seconds"]}
    return found["plain"], found["fedsim"], figures


def measure(case: Case, repeats: int, limit: float, device: str) -> dict[str, Any]:
    """Time a case both ways, in turn, and compare their numbers."""
    model, states = trained_clients(case.model, case.clients, device)
    inputs, targets = examples_of(case)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=PLAIN_BATCH)
    layers = Layers.of(model)
    mixes = list(list_mixes(named_groups(layers, case.groups), case.clients, "pairs", case.ts))
    asked = mixes + ([replace(mix, t=1.0) for mix in mixes] if case.swaps else [])
    sample = asked[:: max(1, len(asked) // PLAIN_MODELS)]
    on_device = (inputs.to(device), targets.to(device))
    losses, table, figures = both_ways(
        lambda: [plain_loss(model.eval(), states, layers, mix, loader) for mix in sample],
        lambda: table_of(case, model, states, *on_device),
        len(asked) + case.clients,
        repeats,
        device,
    )
    row: dict[str, Any] = {"case": case.title, "mixed_models": len(asked), "examples": case.examples} | figures
    if case.tolerance is None:
        check(table, sample, losses)
        row |= work(case, model, states, on_device[0], mixes, row["seconds"], limit, len(asked))
    else:
        exact = table_of(replace(case, tolerance=None), model, states, *on_device)
        errors = (table["loss"] - exact["loss"]).abs()
        row |= {
            "examples_used": float(table["n"].mean()),
            "rows_within": float((errors <= case.tolerance).mean()),
            "largest_error": float(errors.max()),
        }
    return row


def measure_adapted(targets: str, folder: Path | None, examples: int, repeats: int) -> dict[str, Any]:
    """Time the layer-wise barriers of adapters both ways, in turn, and compare their numbers."""
    with TemporaryDirectory() as scratch:
        model, name = adapted.adapted_model(folder, adapted.TARGETS[targets], Path(scratch))
    states, inputs = adapted.client_states(model), adapted.tokens(examples)
    data = Data(inputs, torch.arange(examples) % 2)
    mixes, layers = adapted.mixes_of(model), Layers.of(model)
    sample = mixes[:: len(mixes) // PLAIN_MODELS]
    loader = DataLoader(TensorDataset(inputs, data.targets), batch_size=PLAIN_BATCH)
    plain, whole = copy.deepcopy(model), [model.state_dict() | state for state in states]
    losses, table, figures = both_ways(
        lambda: [plain_loss(plain, whole, layers, mix, loader) for mix in sample],
        lambda: adapted.table_of(model, states, data, processors()),
        len(mixes) + len(states),
        repeats,
    )
    check(table, sample, losses)
    return {"case": adapted_title(targets, name), "mixed_models": len(mixes), "examples": examples} | figures


def adapted_title(targets: str, name: str) -> str:
    """Return the name of a case in the table."""
    return f"{name}, {adapted.CLIENTS} clients: adapters of {targets}, t = 1/2"


def table_of(case: Case, model: nn.Module, states: list[Params], inputs: Tensor, targets: Tensor) -> pd.DataFrame:
    """Measure a case with fedsim."""
    return barriers(
        Models(model, states, threads=processors()),
        Data(inputs, targets, tolerance=case.tolerance),
        groups=list(case.groups),
        against="pairs",
        ts=case.ts,
        references=REFERENCES if case.swaps else NO_SWAPS,
    )


def check(table: pd.DataFrame, sample: Sequence[Mix], expected: Sequence[float]) -> None:
    """Check that both ways give the same losses."""
    rows = table.set_index(["group", "base", "other", "t"])["loss"]
    for mix, loss in zip(sample, expected, strict=True):
        key = (mix.group, mix.base, mix.other, mix.t)
        if key in rows.index and abs(rows[key] - loss) > 1e-5 * max(1.0, loss):
            raise AssertionError(f"{key}: {rows[key]} is not the plain way's {loss}")


def work(
    case: Case,
    model: nn.Module,
    states: list[Params],
    inputs: Tensor,
    mixes: Sequence[Mix],
    seconds: float,
    limit: float,
    asked: int,
) -> dict[str, Any]:
    """Return the work done relative to the minimum by the definition, and its speed relative to the limit."""
    executed, least = (Models(model, states, max_memory=memory).mixed for memory in (2**30, 2**62))
    recipes = [executed.own(k) for k in range(len(states))] + [executed.recipe(mix) for mix in mixes]
    recipes += [executed.recipe(mix, 1.0) for mix in mixes] if case.swaps else []
    flop, minimum, whole = (
        each.flops(some, inputs) or float("nan")
        for each, some in ((executed, recipes), (least, recipes), (executed, [executed.own(0)]))
    )
    rate = flop * case.examples / seconds
    return {
        "flop_over_minimum": flop / minimum,
        "plain_flop_over_minimum": whole * (asked + case.clients) / minimum,
        "gflop_per_s": rate / 1e9,
        "of_limit": rate / limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 examples of each case, nothing is written")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only those whose name has this text")
    parser.add_argument(
        "--minilm", type=Path, metavar="DIR", help="folder of MiniLM's weights; without it, a BERT of its size is built"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(processors())
    limit = gemm_limit(options.device)
    rows, of_adapters = [], []
    for case in CASES:
        if options.cases not in case.title:
            continue
        chosen = replace(case, examples=64) if options.quick else case
        repeats = 1 if case.tolerance else options.repeats
        rows.append(measure(chosen, repeats, limit, options.device))
        show(f"limit: {limit / 1e9:.0f} GFLOP/s", rows[-1:], COLUMNS)
    for targets in adapted.TARGETS:
        if options.device == "cpu" and options.cases in adapted_title(targets, "MiniLM"):
            of_adapters.append(measure_adapted(targets, options.minilm, 8 if options.quick else 64, options.repeats))
            show(f"limit: {limit / 1e9:.0f} GFLOP/s", of_adapters[-1:], COLUMNS)
    show("all cases", rows + of_adapters, COLUMNS)
    name = "barriers" if options.device == "cpu" else f"barriers-{options.device}"
    measured, limits = {row["case"] for row in rows + of_adapters}, {"gemm_gflop_per_s": limit / 1e9}
    for each, found in ((name, rows), (f"{name}-adapters", of_adapters)):
        if found and not options.quick:
            save(each, describe(options.device), limits, found, lambda row: row["case"] not in measured)


if __name__ == "__main__":
    main()
