"""``fedsim run --dry-run``: what a run would do, without training anything."""

from collections.abc import Iterator

from fedsim.config import Config
from fedsim.experiment import prepare
from fedsim.federation import Federation
from fedsim.measurement_work import rounds_between, work_of
from fedsim.strategy import Strategy, draw_participants

# Without forward passes of mixed models.
FREE = ("distances", "similarity")


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
    config, every = federation.config, rounds_between(federation)
    if not every:
        why = "" if config.barriers.every == 0 else ", as one round of them would be more than a tenth of the training"
        yield f"none{why}; set barriers.every to measure them"
        return
    work, rounds = work_of(federation), config.rounds // every
    yield f"in {rounds} of {config.rounds} rounds, {work.models} models on {work.examples} examples each: "
    yield (
        f"{rounds * work.passes:,.0f} forward passes of one example, instead of {rounds * work.passes_apart:,.0f} if "
        "each model were evaluated by itself"
    )
    share = rounds * work.passes / (config.rounds * work.training_passes)
    yield f"{share:.0%} of the work of the training, of {config.rounds * work.training_passes:,.0f} passes"
    if others := [name for name in config.barriers.measures if name not in FREE]:
        yield f"not counted: {', '.join(others)}"
