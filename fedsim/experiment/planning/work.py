"""How much a run would compute and send."""

from dataclasses import dataclass
from typing import Literal

from fedsim.experiment.measuring.barrier_cost import PASSES_TO_TRAIN, barrier_cost, rounds_between
from fedsim.experiment.measuring.evaluation_cost import evaluation_cost
from fedsim.experiment.planning.traffic import PlannedTraffic, counted_rounds
from fedsim.federation.federation import Federation
from fedsim.federation.injection import examples_of
from fedsim.federation.participants import participants
from fedsim.strategy import Strategy

Known = Literal["exact", "at most", "about"]


@dataclass(frozen=True)
class Work:
    """The work of all rounds of a run.

    Parameters
    ----------
    rounds
        Their number.
    examples
        Examples that clients train on, each as often as they do.
    passes
        Forward passes of one example, of training, evaluation and barriers; a step of training counts three.
    up, down
        Bytes; None if they are not known before the run.
    of_bytes
        Whether these are exact, bounds, or follow in part from training or from the first rounds of many.
    """

    rounds: int
    examples: int
    passes: float
    up: int
    down: int | None
    of_bytes: Known = "exact"


def work_of(federation: Federation, strategy: Strategy, traffic: PlannedTraffic) -> Work:
    """Count the work of a run that is not stopped early; what a method's rule computes in addition is not counted."""
    config, sizes = federation.config, federation.data.split.train.sizes
    counted = counted_rounds(config)
    examples = 0
    for server_round in range(1, counted + 1):
        plan = strategy.local_plan(server_round)
        examples += sum(examples_of(config, plan, int(sizes[client])) for client in participants(config, server_round))
    examples = examples * config.rounds // counted
    evaluation, every = evaluation_cost(federation), rounds_between(federation)
    passes: float = PASSES_TO_TRAIN * (examples + evaluation.training_passes)
    passes += evaluation.client_passes + evaluation.server_passes
    if every:
        passes += barrier_cost(federation).passes * (config.rounds // every)
    rough = counted < config.rounds or (bool(strategy.unplanned) and not traffic.at_most)
    known: Known = "about" if rough else "at most" if traffic.at_most else "exact"
    return Work(config.rounds, examples, passes, traffic.up, traffic.down, known)
