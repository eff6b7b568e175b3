"""Matching units and measuring features: time against the paper's algorithm as published, and in forward passes.

Run with ``python benchmarks/alignment.py``; it takes about four minutes. ``--quick`` takes small models and writes
nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from benchmarks.job import make_model
from benchmarks.machine import describe, gemm_limit, processors
from benchmarks.results import save, show
from benchmarks.timing import least, seconds_of, take_turns
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.merging.c2m3 import merge_c2m3
from fedsim.alignment.merging.merging import merge_hierarchically, merge_many
from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Spec,
    identity,
    permute,
    permute_entry,
    random_permutation,
)
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.analysis import connectivity
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params, state_of
from fedsim.training.evaluation import evaluate

MEMBERS = (2, 4, 8, 16)
EXAMPLES = {"cnn": 1000, "resnet18": 500}


def plain_matching(spec: Spec, reference: Params, params: Params, rng: np.random.Generator) -> tuple[Permutation, int]:
    """Match weights by algorithm 1 of arXiv 2209.04836 as published: each visit permutes the original parameters."""
    found, sweeps, rising = identity(spec), 0, True
    while rising:
        rising, sweeps = False, sweeps + 1
        for symmetry in rng.permutation(len(spec.symmetries)).tolist():
            (order,) = spec.symmetries[symmetry].widths
            gain = np.zeros((spec.sizes[order],) * 2)
            for key, dimension in spec.uses(order):
                rows = [
                    value.movedim(dimension, 0).reshape(len(gain), -1).numpy()
                    for value in (reference[key], permute_entry(params[key], spec.axes[key], found, leave=dimension))
                ]
                gain += rows[0] @ rows[1].T
            new = linear_sum_assignment(gain, maximize=True)[1]
            old = found[order].numpy()
            units = np.arange(len(gain))
            if gain[units, new].sum() > gain[units, old].sum() + 1e-12 * abs(gain).max():
                found[order], rising = torch.from_numpy(new), True
    return found, sweeps


def objective(spec: Spec, reference: Params, params: Params, permutation: Permutation) -> float:
    """Return the sum of products of the reference's parameters with permuted ones."""
    moved = permute(params, spec, permutation)
    return sum(float((reference[key].double() * moved[key].double()).sum()) for key in spec.axes)


def drawn(make: Callable[[], nn.Module], members: int) -> tuple[nn.Module, list[Params]]:
    """Return models with different initialisations."""
    states = []
    for member in range(members):
        torch.manual_seed(member)
        model = make()
        states.append({key: value.clone() for key, value in state_of(model).items()})
    return model, states


def match_two(width: int, repeats: int) -> list[dict[str, Any]]:
    """Time the matching of two ResNet-18 both ways, in turn."""
    model, (first, second) = drawn(lambda: MODELS["resnet18"]((3, 32, 32), 10, norm="none", width=width), 2)
    spec = permutation_spec(model, torch.zeros(2, 3, 32, 32))
    permuted = permute(first, spec, random_permutation(spec, np.random.default_rng(0)))
    rows = []
    for case, other in (("a permuted copy", permuted), ("another initialisation", second)):
        found: dict[str, Permutation] = {}

        def ours(other: Params = other, found: dict[str, Permutation] = found) -> None:
            found["fedsim"] = match_weights(spec, first, other, rng=np.random.default_rng(1)).permutation

        def plain(other: Params = other, found: dict[str, Permutation] = found) -> None:
            found["plain"] = plain_matching(spec, first, other, np.random.default_rng(1))[0]

        samples = take_turns({"fedsim": lambda: seconds_of(ours), "plain": lambda: seconds_of(plain)}, repeats)
        best = objective(spec, first, first, identity(spec))
        figures = samples["fedsim"].figures()
        rows.append(
            {
                "case": f"resnet18, width {width}: {case}",
                "parameters": sum(value.numel() for value in first.values()),
                "seconds": figures["seconds"],
                "others_took": figures["others_took"],
                "plain_seconds": samples["plain"].figures()["seconds"],
                "faster_by": samples["plain"].figures()["seconds"] / figures["seconds"],
                "objective": objective(spec, first, other, found["fedsim"]) / best,
                "plain_objective": objective(spec, first, other, found["plain"]) / best,
            }
        )
    return rows


def merge(members: Sequence[int], hidden: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time the merging of many networks."""
    model, states = drawn(lambda: MODELS["mlp"]((1, 28, 28), 10, hidden=hidden), max(members))
    spec = permutation_spec(model, torch.zeros(2, 1, 28, 28))
    rows = []
    for n in members:
        start = time.perf_counter()
        merged = merge_many(spec, states[:n], rng=np.random.default_rng(0))
        seconds, sweeps = time.perf_counter() - start, len(merged.spreads) - 1
        start = time.perf_counter()
        merge_hierarchically(spec, states[:n], rng=np.random.default_rng(0))
        rows.append(
            {
                "case": f"mlp {list(hidden)}",
                "members": n,
                "sweeps": sweeps,
                "seconds": seconds,
                "seconds_per_sweep_and_member": seconds / max(1, sweeps) / n,
                "hierarchical_seconds": time.perf_counter() - start,
            }
        )
    return rows


def merge_at_once(members: int, hidden: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Time C2M3 of many networks, in matchings of one pair and in merges of two."""
    model, states = drawn(lambda: MODELS["mlp"]((1, 28, 28), 10, hidden=hidden), members)
    spec = permutation_spec(model, torch.zeros(2, 1, 28, 28))
    steps: dict[int, int] = {}

    def pair() -> None:
        match_weights(spec, *states[:2], rng=np.random.default_rng(0))

    def at_once(n: int) -> None:
        steps[n] = len(merge_c2m3(spec, states[:n], rng=np.random.default_rng(0)).objective) - 1

    variants = {
        "pair": lambda: seconds_of(pair),
        "two": lambda: seconds_of(lambda: at_once(2)),
        "all": lambda: seconds_of(lambda: at_once(members)),
    }
    figures = {name: samples.figures() for name, samples in take_turns(variants, repeats).items()}
    seconds = figures["all"]["seconds"]
    return {
        "case": f"c2m3, mlp {list(hidden)}",
        "members": members,
        "steps": steps[members],
        "seconds": seconds,
        "others_took": figures["all"]["others_took"],
        "pairs": seconds / figures["pair"]["seconds"],
        "steps_of_two": steps[2],
        "merges_of_two": seconds / figures["two"]["seconds"],
    }


def features(name: str, examples: int, repeats: int) -> dict[str, Any]:
    """Time the feature connectivity of a pair, in evaluations of one model on the same examples and threads."""
    model, states = drawn(lambda: make_model(name), 2)
    inputs = torch.randn(examples, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(examples, dtype=torch.int64)
    variants = {
        "pass": lambda: seconds_of(lambda: evaluate(model, inputs, targets)),
        "pair": lambda: seconds_of(lambda: connectivity(model, states, inputs, against="pairs")),
    }
    samples = take_turns(variants, repeats)
    figures, one = samples["pair"].figures(), samples["pass"].figures()["seconds"]
    return {
        "case": f"{name}, a pair at t = 1/2",
        "examples": examples,
        "pass_seconds": one,
        "seconds": figures["seconds"],
        "others_took": figures["others_took"],
        "passes": figures["seconds"] / one,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models; write nothing")
    quick = parser.parse_args().quick
    repeats = 1 if quick else 3
    limits = {"gemm_gflop_per_s": gemm_limit() / 1e9, "assignment_512_seconds": assignment_seconds(512)}
    matched = match_two(16 if quick else 64, repeats)
    show("Weight matching of two models", matched, list(matched[0]))
    merged = merge(MEMBERS[:2] if quick else MEMBERS, (64, 64) if quick else (512, 512, 512))
    show("Merging many models", merged, list(merged[0]))
    at_once = [merge_at_once(8, hidden, repeats) for hidden in (((64,) * 3,) if quick else ((64,) * 3, (256,) * 3))]
    show("Merging eight models at once", at_once, list(at_once[0]))
    torch.set_num_threads(1)
    measured = [features(name, 100 if quick else n, repeats) for name, n in EXAMPLES.items()]
    show("Feature connectivity, one thread", measured, list(measured[0]))
    if not quick:
        save("alignment", describe(), limits, [*matched, *merged, *at_once, *measured], processors=processors())


def assignment_seconds(n: int) -> float:
    """Return the shortest wall time of one assignment of ``n`` units, by scipy."""
    gain = np.random.default_rng(0).normal(size=(n, n))
    return least(lambda: linear_sum_assignment(gain, maximize=True), 5)


if __name__ == "__main__":
    main()
