"""``fedsim run --dry-run``: what a run would do, without training anything."""

from collections.abc import Iterator

import numpy as np

from fedsim.analysis import count_evaluations
from fedsim.catalog import total_variation
from fedsim.config import Config
from fedsim.experiment import prepare
from fedsim.federation import Federation
from fedsim.report.figures import format_bytes
from fedsim.rounds import barrier_groups, barrier_pairs
from fedsim.strategy import Strategy, draw_participants


def describe_run(config: Config) -> str:
    """Return the resolved config, layers, label counts, heterogeneity, bytes per round and the analysis' cost as text.

    Raises
    ------
    ConfigError
        If a part of the run cannot be built.
    """
    federation, strategy = prepare(config)
    sections = {
        "config": config.to_toml().splitlines(),
        "layers": _layers(federation),
        "examples of each class by client": _labels(federation),
        "traffic": _traffic(federation, strategy),
        "barriers": _barriers(federation),
    }
    return "\n".join(f"# {title}\n" + "\n".join(lines) + "\n" for title, lines in sections.items())


def _layers(federation: Federation) -> Iterator[str]:
    width = max(map(len, federation.layers.names))
    for layer in federation.layers:
        yield f"{layer.name:{width}}  {layer.kind:6}  {layer.size:>12,} bytes"
    yield f"{'all':{width}}  {'':6}  {sum(layer.size for layer in federation.layers):>12,} bytes"


def _labels(federation: Federation) -> Iterator[str]:
    counts = federation.partition.label_counts(federation.dataset.labels, len(federation.dataset.classes))
    for client, row in enumerate(counts):
        yield f"client {client:>4}: " + " ".join(f"{count:>5}" for count in row) + f"  sum {row.sum():>6}"
    effective = np.exp([-sum(p * np.log(p) for p in row / row.sum() if p > 0) for row in counts])
    yield f"mean effective number of classes: {effective.mean():.2f} of {counts.shape[1]}"
    yield f"mean total variation from the pooled labels: {total_variation(counts):.3f}"


def _traffic(federation: Federation, strategy: Strategy) -> Iterator[str]:
    """List the uploads; what is averaged in a round comes down when a client next takes part."""
    config = federation.config
    buffers = config.strategy.buffers == "shared"
    entries = {key: value.numel() * value.element_size() for key, value in federation.initial.items()}
    previous, total = None, 0
    for server_round in range(1, config.rounds + 1):
        group = strategy.shared(server_round)
        size = sum(entries[key] for key in federation.layers.keys(group, buffers=buffers))
        clients = len(draw_participants(config.seed, server_round, config.clients, config.participation))
        total += size * clients
        if group != previous:
            names = ", ".join(group.layers) or "nothing"
            yield f"from round {server_round}: {clients} clients send {size:,} bytes each: {names}"
        previous = group
    yield f"up in all rounds: {format_bytes(total)}; down at most the same"


def _barriers(federation: Federation) -> Iterator[str]:
    config = federation.config
    if not config.barriers.every:
        yield "none; set barriers.every to measure them"
        return
    models = len(draw_participants(config.seed, 1, config.clients, config.participation))
    model, groups = federation.model(), barrier_groups(config)
    evaluations = count_evaluations(model, models, groups=groups, against="average")
    if pairs := barrier_pairs(config, models):
        evaluations += count_evaluations(model, models, groups=groups, against="pairs", pairs=pairs)
    times = config.rounds // config.barriers.every
    examples = config.barriers.examples
    yield f"in {times} of {config.rounds} rounds, {evaluations} models on {examples} examples each: "
    yield f"{times * evaluations * examples:,} forward passes of one example"
