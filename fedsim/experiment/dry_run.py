"""``fedsim run --dry-run``: what a run would do, without training anything."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from operator import itemgetter
from typing import TypeVar

from fedsim.analysis.suite import MEASURES
from fedsim.config import Config
from fedsim.config.content import describe_files
from fedsim.data import Dataset
from fedsim.data.heterogeneity import of_origin
from fedsim.experiment.injected import describe_faults
from fedsim.experiment.local_training import describe_training, training_notes
from fedsim.experiment.measuring.barrier_cost import barrier_cost, rounds_between
from fedsim.experiment.measuring.evaluation_cost import evaluation_cost
from fedsim.experiment.planning.traffic import PlannedTraffic, counted_rounds, may_send_sets, planned_traffic
from fedsim.experiment.predictions import predictions_note
from fedsim.experiment.run import prepare
from fedsim.experiment.task_checks import scale_notes
from fedsim.federation.client.fine_tuning import fine_tuned_layers
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants, unseen
from fedsim.results.report.comparing.units import how_many
from fedsim.shortening import printable
from fedsim.strategy import Phase, Strategy
from fedsim.training.metrics import LOSS, meant

Value = TypeVar("Value")
SHOWN = 100  # changes of what is trained or sent, of which a cycle has one in each round


def describe_run(config: Config) -> str:
    """Return the resolved config, layers, label counts, heterogeneity, bytes per round and the analysis' cost as text.

    Raises
    ------
    ConfigError
        If a part of the run cannot be built.
    """
    federation, strategy = prepare(config)
    parts = describe_parts(federation, strategy, planned_traffic(federation, strategy))
    texts = {"config": config.to_toml().splitlines()} | parts
    return "\n".join(f"# {title}\n" + "\n".join(lines) + "\n" for title, lines in texts.items() if lines)


def describe_parts(federation: Federation, strategy: Strategy, traffic: PlannedTraffic) -> dict[str, list[str]]:
    """Return the lines about each part of a run by its title, without control characters."""
    each = "range of the target" if federation.task.name == "regression" else "class"
    sections = {
        "files by whose content the run is named": describe_files(federation.config),
        "layers": _layers(federation),
        f"clients: examples, and how many of each {each}": _clients(federation),
        "task": _task(federation),
        "training": _training(federation, strategy),
        "traffic": _traffic(federation, strategy, traffic),
        "injected faults": describe_faults(federation, strategy),
        "evaluation": _evaluation(federation, strategy),
        "barriers": _barriers(federation),
    }
    return {title: list(map(printable, lines)) for title, lines in sections.items()}


def _layers(federation: Federation) -> Iterator[str]:
    width = max(map(len, federation.layers.names))
    for layer in federation.layers:
        yield f"{layer.name:{width}}  {layer.kind:6}  {layer.size:>12,} bytes"
    yield f"{'all':{width}}  {'':6}  {sum(layer.size for layer in federation.layers):>12,} bytes"
    model = federation.summary
    yield model.share
    if model.frozen:
        yield f"frozen: {', '.join(model.frozen)}"
    yield f"head: {' | '.join(model.head) or 'not known; name it with [model] head'}"
    if model.order == "registration":
        yield "the layers are in the order of registration, since the order of their use could not be recorded"


def _task(federation: Federation) -> Iterator[str]:
    """Describe what models get and learn, by which loss, and what is measured."""
    loss, dataset = federation.objective, federation.data.dataset
    weights = federation.config.loss.class_weights
    weighted = f", class weights {'given' if isinstance(weights, tuple) else weights}" if weights != "none" else ""
    said = "" if federation.config.data.task != "auto" else ", as the targets show"
    outputs = f"{how_many(dataset.outputs, 'output')} of the model"
    yield f"inputs: {' x '.join(map(str, dataset.shape))}, {_normalisation(dataset)}"
    yield f"{dataset.task}{said}: {outputs}, loss {loss.name}{weighted}"
    yield from scale_notes(federation)
    yield f"metrics: {', '.join((LOSS, federation.task.main, *federation.metrics))}"


def _normalisation(dataset: Dataset) -> str:
    if dataset.tokens:
        return f"tokens, of {dataset.tokens:,} different ones"
    if not dataset.is_normalised:
        return "not normalised"
    if len(dataset.mean) == 1 < dataset.shape[0]:
        return "normalised by one mean and deviation"
    return f"normalised per {'feature' if len(dataset.shape) == 1 else 'channel'} ({dataset.shape[0]})"


def _clients(federation: Federation) -> Iterator[str]:
    measured = federation.data.heterogeneity()
    yield from measured.table()
    yield from measured.summary()


def _training(federation: Federation, strategy: Strategy) -> Iterator[str]:
    """Describe how clients train, and what in which order, each time that it changes."""
    yield describe_training(federation, strategy)
    yield from training_notes(federation, strategy)
    epochs = federation.config.local.epochs
    plans = ((each, strategy.local_plan(each)) for each in range(1, counted_rounds(federation.config) + 1))
    yield from _first(
        f"from round {server_round}: {', then '.join(_phase(phase, epochs) for phase in plan.phases)}"
        for server_round, plan in _changes(plans)
    )


def _changes(values: Iterable[tuple[int, Value]]) -> Iterator[tuple[int, Value]]:
    """Yield the rounds with another value than the round before."""
    return (next(rounds) for _, rounds in groupby(values, key=itemgetter(1)))


def _first(lines: Iterator[str]) -> Iterator[str]:
    """Yield the first lines, and how many there are more."""
    yield from islice(lines, SHOWN)
    if more := sum(1 for _ in lines):
        yield f"and {more:,} more changes"


def _phase(phase: Phase, epochs: int) -> str:
    of = "" if phase.trains == "model" else f" of their set {phase.trains!r}"
    count, unit = (phase.steps, "step") if phase.steps else (phase.epochs or epochs, "epoch")
    more = [f"lr {phase.lr:g}"] if phase.lr else []
    more += [f"lr times {scale:g} in {text!r}" for text, scale in phase.lr_scale.items()]
    more += [f"proximal term {phase.proximal:g} towards the {phase.toward}"] if phase.proximal else []
    return f"{phase.trainable!r}{of} for {count} {unit}{'' if count == 1 else 's'}" + "".join(
        f", {each}" for each in more
    )


def _traffic(federation: Federation, strategy: Strategy, traffic: PlannedTraffic) -> Iterator[str]:
    """Describe what is sent each time that it changes, and the bytes of all rounds."""
    clients = len(participants(federation.config, 1))
    most = "at most " if traffic.at_most or type(strategy).shared_by is not Strategy.shared_by else ""
    yield from _first(
        f"from round {server_round}: {clients} clients send {most}{sum(traffic.sizes[name] for name in group):,} bytes "
        f"each: {', '.join(group.layers) or 'nothing'}"
        for server_round, group in _changes(enumerate(traffic.groups, 1))
    )
    yield from _first(
        f"from round {server_round}: and their sets, each: {', or '.join(map(_sets, sets))}"
        for server_round, sets in _changes(enumerate(traffic.sets, 1))
        if any(sets)
    )
    yield f"in all rounds: {_total(federation.config, traffic)}"
    if strategy.unplanned:
        yield f"not known before the run: {strategy.unplanned}"
    if traffic.down is None:
        yield "not known before the run: the bytes down, as the method's for_client decides what clients take"
    if may_send_sets(strategy):
        yield "not counted: parameter sets that the method sends in addition to these, if any"


def _total(config: Config, traffic: PlannedTraffic) -> str:
    about = traffic.counted < config.rounds
    most = ("about " if about else "") + ("at most " if traffic.at_most else "")
    text = f"{most}{traffic.up:,} bytes up"
    if traffic.down is not None:
        text += f", {most if traffic.at_most else ''}{traffic.down:,} bytes down"
    if about:
        text += f", as in rounds 2 to {traffic.counted:,} on average" if traffic.counted > 2 else ", as in round 2"
    return f"{text}{', if no client fails' if config.faults.is_wanted else ''}"


def _sets(sets: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} ({up:,} bytes up, {down:,} down)" for name, (up, down) in sets.items()) or "none"


def _evaluation(federation: Federation, strategy: Strategy) -> Iterator[str]:
    """Describe who never trains, and what the evaluation costs."""
    config, cost = federation.config, evaluation_cost(federation)
    if never := unseen(config):
        named = [f"{client}{of_origin(federation.data.origins, client)}" for client in never]
        yield f"{len(never)} of {config.clients} clients never train: {', '.join(named)}"
    yield (
        f"in {cost.rounds} of {config.rounds} rounds, at most {cost.client_passes:,} forward passes of one example for "
        f"the clients and {cost.server_passes:,} for the server"
    )
    if cost.fine_tuned_rounds:
        yield (
            f"in {cost.fine_tuned_rounds} of {config.rounds} rounds, clients fine-tune "
            f"{fine_tuned_layers(federation, strategy)!r}: {cost.training_passes:,} examples forward and backward"
        )
    yield from predictions_note(federation)
    metric = meant(config.stop.metric, (federation.task.main,))
    if (target := config.stop.target) is not None:
        yield f"stops once the clients' mean validation {metric} is {target:g} or better"
    if patience := config.stop.patience:
        yield f"stops once the clients' mean validation {metric} has not improved in {patience} evaluations in a row"


def _barriers(federation: Federation) -> Iterator[str]:
    config, every = federation.config, rounds_between(federation)
    if not every:
        why = "" if config.barriers.every == 0 else ": a round of barriers would cost more than 10 % of training"
        yield f"none{why}; set barriers.every to measure them{' anyway' if why else ''}"
        return
    cost, rounds = barrier_cost(federation), config.rounds // every
    yield f"in {rounds} of {config.rounds} rounds, {cost.models} models on {cost.examples} examples each:"
    yield (
        f"{rounds * cost.passes:,.0f} forward passes of one example, instead of {rounds * cost.passes_apart:,.0f} if "
        "each model were evaluated separately"
    )
    share = rounds * cost.passes / (config.rounds * cost.training_passes)
    yield f"{100 * share:.0f} % of the {config.rounds * cost.training_passes:,.0f} passes of the training"
    others: list[str] = [name for name in config.barriers.measures if MEASURES[name].mixes]
    others += [f"matching by {way}" for way in config.barriers.matching if way != "none"]
    if others:
        yield f"not counted: {', '.join(others)}"
