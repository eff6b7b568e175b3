"""``fedsim run --dry-run``: what a run would do, without training anything."""

from collections.abc import Iterator

from fedsim.analysis import count_evaluations
from fedsim.config import Config
from fedsim.experiment import prepare
from fedsim.federation import Federation
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
        "clients: examples, and how many of each class": _clients(federation),
        "traffic": _traffic(federation, strategy),
        "barriers": _barriers(federation),
    }
    return "\n".join(f"# {title}\n" + "\n".join(lines) + "\n" for title, lines in sections.items())


def _layers(federation: Federation) -> Iterator[str]:
    width = max(map(len, federation.layers.names))
    for layer in federation.layers:
        yield f"{layer.name:{width}}  {layer.kind:6}  {layer.size:>12,} bytes"
    yield f"{'all':{width}}  {'':6}  {sum(layer.size for layer in federation.layers):>12,} bytes"


def _clients(federation: Federation) -> Iterator[str]:
    measured = federation.data.heterogeneity()
    yield from measured.table()
    yield from measured.summary()


def _traffic(federation: Federation, strategy: Strategy) -> Iterator[str]:
    """Count the bytes of all rounds, by the rule that a client takes what was averaged since it last took part."""
    config, layers = federation.config, federation.layers
    buffers = config.strategy.buffers == "shared"
    size = {
        name: sum(federation.initial[key].nbytes for key in layers.keys((name,), buffers=buffers))
        for name in layers.names
    }
    averaged_in: dict[str, int] = {}
    last_round: dict[int, int] = {}
    previous, up, down = None, 0, 0
    for server_round in range(1, config.rounds + 1):
        group = strategy.shared(server_round)
        participants = draw_participants(config.seed, server_round, config.clients, config.participation)
        bytes_each = sum(size[name] for name in group)
        up += bytes_each * len(participants)
        for client in participants:
            last = last_round.get(client, 0)
            down += sum(size[name] for name, averaged in averaged_in.items() if averaged >= last)
        averaged_in |= dict.fromkeys(group, server_round)
        last_round |= dict.fromkeys(participants, server_round)
        if group != previous:
            names = ", ".join(group.layers) or "nothing"
            yield f"from round {server_round}: {len(participants)} clients send {bytes_each:,} bytes each: {names}"
        previous = group
    yield f"in all rounds: {up:,} bytes up, {down:,} bytes down"


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
