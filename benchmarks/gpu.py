"""Whether a GPU computes what the CPU computes, with how much memory, and where a cohort's step spends its time.

Run with ``bash benchmarks/gpu.sh``, which also measures speed. It needs torch, torchvision and NumPy; checks of what
needs pandas or scipy are left out where these are missing. ``--device cpu`` tries the script itself.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks import job as jobs
from benchmarks.machine import describe
from benchmarks.results import note_of, show
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.models.params import Params, state_of
from fedsim.training import SGD, LocalPlan, LocalSettings, LocalTask, Phase, train_, train_cohort
from fedsim.training.dropout import seeded_dropout_

COHORTS = (5, 20, 100)
STEPS = LocalPlan((Phase(steps=3),))  # more would amplify rounding
TOLERANCE = 1e-4
# Products of bfloat16 are summed in other orders, and their sums rounded to 8 bits.
TOLERANCE_OF = {"bfloat16": 2e-2}
COLUMNS = ("check", "error", "tolerance", "passed", "note")
SETTINGS: dict[str, LocalSettings] = {
    "sgd": SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM),
    "dropout": SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM),
    "adamw": LocalSettings(batch_size=jobs.BATCH, lr=1e-3, optimizer="adamw", eps=1e-3),
    "bfloat16": SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM, precision="bfloat16"),
}
Row = dict[str, Any]


def make_model(dropout: bool) -> nn.Module:
    """Return the benchmark's ``cnn``, before its head a dropout if asked for."""
    model = jobs.make_model("cnn")
    if dropout:
        model.fc1 = nn.Sequential(model.get_submodule("fc1"), nn.Dropout(0.3))
        seeded_dropout_(model)
    return model


def distance(found: Params, expected: Params, start: Params) -> float:
    """Return the distance of trained models, relative to how far training has moved."""
    keys = [key for key, value in expected.items() if value.is_floating_point()]
    off, way = (
        sum(float((one[key].cpu().double() - other[key].cpu().double()).square().sum()) for key in keys) ** 0.5
        for one, other in ((found, expected), (expected, start))
    )
    return off / way


def check_training(name: str, device: str, cohorts: Sequence[int]) -> list[Row]:
    """Compare training on a device, alone and in cohorts, with training alone on the CPU."""
    settings, model = SETTINGS[name], make_model(dropout=name == "dropout")
    start = {key: value.clone() for key, value in state_of(model).items()}
    clients = max(cohorts, default=1)
    job = jobs.Job.random(clients)
    data = [tuple(tensor[: 100 - k % 7] for tensor in job.channels_last(k)) for k in range(clients)]
    compared = [*range(min(2, clients)), clients - 1]  # few, as the CPU takes its time

    def alone(client: int, where: str) -> Params:
        own = make_model(dropout=name == "dropout").to(where)
        train_(own, *(each.to(where) for each in data[client]), STEPS, settings, np.random.default_rng(client))
        return dict(state_of(own))

    expected = {client: alone(client, "cpu") for client in compared}
    rows = [_row(f"training, {name}", distance(alone(0, device), expected[0], start), name)]
    entries = {key: value.to(device) for key, value in start.items()}
    for size in cohorts:
        tasks = [
            LocalTask(entries, *(each.to(device) for each in data[k]), np.random.default_rng(k)) for k in range(size)
        ]
        together = train_cohort(model.to(device), tasks, STEPS, settings)
        errors = [distance(together[k][0], expected[k], start) for k in compared if k < size]
        rows.append(_row(f"cohort of {size}, {name}", max(errors), name))
    return rows


def states_of(count: int, device: str) -> list[Params]:
    """Return models that begin alike and are trained on other data, on a device."""
    states, job = [], jobs.Job.random(count)
    for client in range(count):
        model = make_model(dropout=False)
        train_(model, *job.channels_last(client), STEPS, SETTINGS["sgd"], np.random.default_rng(client))
        states.append({key: value.clone() for key, value in state_of(model).items()})
    return [{key: value.to(device) for key, value in state.items()} for state in states]


def check_barriers(device: str, examples: int) -> list[Row]:
    """Compare the mean losses of mixed models on both devices."""
    found = []
    for where in ("cpu", device):
        states, (inputs, targets) = states_of(2, where), jobs.Job.random(1).channels_last(0, where)
        mixed = MixedModels(make_model(dropout=False).to(where), states)
        parts = len(mixed.parts)
        recipes: list[Any] = [mixed.own(0), mixed.own(1)]
        recipes += [tuple((0, 1, 0.5) if i == part else 0 for i in range(parts)) for part in range(parts)]
        losses = mixed.evaluate(recipes, Data(inputs[:examples], targets[:examples]))
        found.append(torch.stack([losses[recipe].losses.mean() for recipe in recipes]))
    return [_row("barriers", float(((found[1] - found[0]) / found[0]).abs().max()))]


def check_connectivity(device: str, examples: int) -> list[Row]:
    """Compare the connectivity of features on both devices."""
    from fedsim.analysis import Models, connectivity

    tables = []
    for where in ("cpu", device):
        inputs = jobs.Job.random(1).channels_last(0, where)[0][:examples]
        tables.append(connectivity(Models(make_model(dropout=False).to(where), states_of(2, where)), inputs))
    first, second = (table.select_dtypes("number").to_numpy() for table in tables)
    return [_row("connectivity", table_error(first, second))]


def table_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference, relative to 1 and the value; infinite if another entry has no value."""
    if not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    return float(np.nanmax(np.abs(found - expected) / (1 + np.abs(expected))))


def check_matching(device: str) -> list[Row]:
    """Match a permuted copy on both devices: what is found must be the same."""
    from fedsim.alignment import derive, match_weights, permute, random_permutation

    orders = []
    for where in ("cpu", device):
        model = make_model(dropout=False).to(where)
        params, inputs = dict(state_of(model)), jobs.Job.random(1).channels_last(0, where)[0][:4]
        spec = derive(model, inputs).spec
        other = permute(params, spec, random_permutation(spec, np.random.default_rng(1)))
        found = match_weights(spec, params, other, rng=np.random.default_rng(0)).permutation
        orders.append({name: order.cpu() for name, order in found.items()})
    differ = [name for name, order in orders[0].items() if not torch.equal(order, orders[1][name])]
    return [_row("matching", float(len(differ)))]


def peak_memory(device: str, size: int) -> Row:
    """Return the peak memory of a cohort on a GPU, in bytes for each client."""
    if device != "cuda":
        return {"cohort": size, "note": "only a GPU has memory of its own"}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cohort_step(device, size)
    return {"cohort": size, "bytes_per_client": (torch.cuda.max_memory_allocated() - before) / size}


def cohort_step(device: str, size: int) -> None:
    """Take a step with a cohort."""
    job, model = jobs.Job.random(size), make_model(dropout=False).to(device)
    entries = {key: value.clone() for key, value in state_of(model).items()}
    tasks = [LocalTask(entries, *job.channels_last(k, device), np.random.default_rng(k)) for k in range(size)]
    train_cohort(model, tasks, LocalPlan((Phase(steps=1),)), SETTINGS["sgd"])


def profile(device: str, size: int) -> list[Row]:
    """Return the operations of a cohort's step that take most time, in milliseconds."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    cohort_step(device, size)  # the first prepares kernels
    with recorded(activities=kinds) as found:
        cohort_step(device, size)
    times = [
        (each.key, (each.self_device_time_total if device == "cuda" else each.self_cpu_time_total) / 1e3, each.count)
        for each in found.key_averages()
    ]
    return [{"operation": key, "ms": ms, "calls": n} for key, ms, n in sorted(times, key=lambda each: -each[1])[:15]]


def attempted(name: str, check: Callable[[], list[Row]]) -> list[Row]:
    """Return a check's rows, or one with the reason why there are none."""
    try:
        return check()
    except ImportError as error:
        return [{"check": name, "passed": None, "note": f"left out: {error}"}]
    except (RuntimeError, ValueError, TypeError) as error:
        return [{"check": name, "passed": False, "note": note_of(error)}]


def _row(check: str, error: float, name: str = "") -> Row:
    tolerance = TOLERANCE_OF.get(name, TOLERANCE)
    return {"check": check, "error": error, "tolerance": tolerance, "passed": error <= tolerance}


def measured(device: str, cohorts: Sequence[int], examples: int) -> dict[str, Any]:
    """Return everything as it is written."""
    # Convolutions of TF32 keep 10 bits, which is no mistake of the program.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[Row] = []
    for name in SETTINGS:
        rows += attempted(f"training, {name}", lambda name=name: check_training(name, device, cohorts))
    rows += attempted("barriers", lambda: check_barriers(device, examples))
    rows += attempted("connectivity", lambda: check_connectivity(device, examples))
    rows += attempted("matching", lambda: check_matching(device))
    size = max(cohorts)
    return {
        "machine": describe(device),
        "rows": rows,
        "memory": [peak_memory(device, each) for each in cohorts],
        "profile": profile(device, size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--cohorts", nargs="+", type=int, default=list(COHORTS))
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found = measured(options.device, options.cohorts, options.examples)
    show("against the CPU", found["rows"], COLUMNS)
    show(f"a step with a cohort of {max(options.cohorts)}", found["profile"], ("operation", "ms", "calls"))
    path = options.out / f"checks-{options.device}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten: {path}")
    if any(row["passed"] is False for row in found["rows"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
