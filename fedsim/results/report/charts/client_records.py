"""What is known of each client: its training examples and labels, and the value of its model by round."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.results.example_counts import targets_per_example
from fedsim.results.report.charts.compact import thinned
from fedsim.results.report.comparing.pairs import Baseline
from fedsim.results.report.drawing.style import short
from fedsim.results.result import Result

MOST_POINTS = 3_000  # clients of all runs together
MOST_VALUES = 60_000  # of the curves of all of them
MOST_LABELS = 30  # of a client, the most frequent ones


@dataclass(frozen=True)
class ClientRecords:
    """The clients of runs, in numbers instead of names.

    Parameters
    ----------
    points
        Columns ``k`` number of the client, ``g`` of the group, ``s`` seed, ``i`` index of the client, ``n`` training
        examples, ``h`` entropy of its labels in nats, ``v`` value, ``d`` gain over the baseline (NaN if there is none),
        ``t`` test examples, ``j`` number of its labels; ``o`` name of its origin, where clients of a run have one.
    curves
        Values by round of each ``k``, in the order of ``rounds``.
    labels
        Counts of each ``j`` by the number of the class, the most frequent ones.
    classes
        Names of the classes by their numbers.
    rounds
        Rounds of the curves.
    left_out
        Number of runs of further seeds that have no room.
    """

    points: pd.DataFrame
    curves: Mapping[int, Sequence[float]]
    labels: Mapping[int, Mapping[int, int]]
    classes: Sequence[str]
    rounds: Sequence[int]
    left_out: int = 0


def client_records(
    groups: Iterable[Sequence[Result]], baseline: Baseline | None = None, metric: str = "accuracy"
) -> ClientRecords:
    """Return the clients of the runs of each group, after the last evaluated round.

    Parameters
    ----------
    groups
        Runs that differ in their seed only.
    baseline
        Runs that gains are over.
    metric
        What is compared.
    """
    kept, left_out = _kept([list(members) for members in groups])
    tables: list[pd.DataFrame] = []
    labels: dict[str, tuple[int, dict[int, dict[int, int]]]] = {}
    by_round: list[pd.DataFrame] = []
    classes = list(dict.fromkeys(name for _, result in kept for name in result.heterogeneity.classes))
    start = 0
    for group, result in kept:
        first, _ = labels.setdefault(
            result.partition_name, (sum(len(each) for _, each in labels.values()), _label_counts(result, classes))
        )
        table = _of_run(result, baseline, metric)
        table = table.assign(g=group, s=result.config.seed, k=range(start, start + len(table)), j=first + table["i"])
        tables.append(table)
        values = result.of("personalised", metric).pivot_table(
            index="client", columns="round", values="value", dropna=False
        )
        by_round.append(values.reindex(table["i"]).set_axis(table["k"], axis=0))
        start += len(table)
    points = pd.concat(tables, ignore_index=True).fillna({"o": ""})
    rounds = thinned(
        [int(each) for values in by_round for each in values.columns], max(2, MOST_VALUES // max(1, len(points)))
    )
    curves = {
        int(k): row.tolist()
        for values in by_round
        for k, row in zip(values.index, values.reindex(columns=rounds).to_numpy(dtype=float), strict=True)
    }
    counts = {first + client: each for first, of_partition in labels.values() for client, each in of_partition.items()}
    return ClientRecords(points, curves, counts, classes, rounds, left_out)


def _kept(groups: Sequence[Sequence[Result]]) -> tuple[list[tuple[int, Result]], int]:
    """Return the runs that have room, with their group: one seed of each group after the other."""
    turns = [(turn, group, members[turn]) for group, members in enumerate(groups) for turn in range(len(members))]
    kept: list[tuple[int, Result]] = []
    size = 0
    for turn, group, result in sorted(turns, key=lambda each: each[:2]):
        size += len(result.heterogeneity)
        if turn == 0 or size <= MOST_POINTS:
            kept.append((group, result))
    return sorted(kept, key=lambda each: each[0]), len(turns) - len(kept)


def _of_run(result: Result, baseline: Baseline | None, metric: str) -> pd.DataFrame:
    own = result.by_client("personalised", metric).astype(float)
    rows = result.of("personalised", metric)
    tested = rows[rows["round"] == result.evaluated].set_index("client")["n"] if "n" in rows else pd.Series(dtype=float)
    partner = baseline.partner(result) if baseline else None
    is_other = partner is not None and partner is not result
    gains = own - partner.by_client("personalised", metric).astype(float) if partner is not None and is_other else None
    clients, origins = own.index.astype(int), result.heterogeneity.origins
    named = {"o": [short(origins[client]) for client in clients]} if origins else {}
    return pd.DataFrame(
        {
            "i": clients,
            "n": training_examples(result).reindex(clients).to_numpy(dtype=float),
            "h": _entropies(result).reindex(clients).to_numpy(dtype=float),
            "v": own.to_numpy(),
            "d": np.nan if gains is None else gains.reindex(own.index).to_numpy(),
            "t": tested.reindex(own.index).to_numpy(dtype=float) / (targets_per_example(result) or 1),
            **named,
        }
    )


def training_examples(result: Result) -> pd.Series:
    """Return the training examples of each client: as it reported, or all that are neither validated nor tested on.

    Of sequences of various lengths they are labels, as the records count these. It is NaN where that is not known.
    """
    each = targets_per_example(result)
    # Of sequences, in the unit of the records: targets subtracted from examples would give negative numbers.
    held = result.heterogeneity.counts.totals if each is None else each * result.heterogeneity.sizes
    sizes = pd.Series(np.asarray(held, dtype=float))
    for split in ("validation", "test"):
        rows = result.of("personalised", "loss", split)
        sizes = sizes.sub(rows.groupby("client")["n"].max() if "n" in rows else 0, fill_value=0).reindex(sizes.index)
    sizes = sizes.where(sizes >= 0)  # of several labels for each example, the records count those too that it lacks
    trained = result.of("uploaded", "loss", "train")
    if "n" in trained:
        reported = trained.dropna(subset=["n"]).groupby("client")["n"].last().astype(float)
        sizes = reported.combine_first(sizes)
    return sizes.set_axis(sizes.index.astype(int)) / (each or 1)


def _entropies(result: Result) -> pd.Series:
    """Return the entropy of each client's labels, in nats; NaN for a client without labels."""
    return pd.Series(
        {
            client: float(-sum(count / total * math.log(count / total) for count in counts.values()))
            if (total := sum(counts.values()))
            else float("nan")
            for client, counts in _counts(result).items()
        },
        dtype=float,
    )


def _counts(result: Result) -> dict[int, dict[int, int]]:
    held = result.heterogeneity.counts
    return {
        client: {
            int(label): int(count)
            for label, count in zip(held.labels[start:end], held.counts[start:end], strict=True)
            if count
        }
        for client, (start, end) in enumerate(
            zip(held.offsets[:-1].astype(int), held.offsets[1:].astype(int), strict=True)
        )
    }


def _label_counts(result: Result, classes: Sequence[str]) -> dict[int, dict[int, int]]:
    """Return by client the counts of its most frequent labels, in the order of the classes."""
    numbers = {name: number for number, name in enumerate(classes)}
    own = [numbers[name] for name in result.heterogeneity.classes]
    shown = {}
    for client, counts in _counts(result).items():
        most = sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS]
        shown[client] = {own[label]: counts[label] for label in sorted(most)}
    return shown
