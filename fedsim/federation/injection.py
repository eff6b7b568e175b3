"""Which fault of ``[faults]`` hits whom: a function of seed, round and client, so that all strategies meet the same."""

import math
from dataclasses import dataclass

from flwr.app import Message

from fedsim.config import Config
from fedsim.config.faults import KINDS, LATE
from fedsim.federation.federation import Federation
from fedsim.seeds import rng
from fedsim.strategy import LocalPlan
from fedsim.strategy.messages import Instructions


@dataclass(frozen=True)
class Injected:
    """What happens to a client in a round.

    Parameters
    ----------
    kind
        One of `fedsim.config.faults.KINDS`, ``late``, or empty without a fault.
    seconds
        Simulated time of its training; None without simulated time.
    """

    kind: str = ""
    seconds: float | None = None


def injected_into(federation: Federation, message: Message, client: int) -> Injected:
    """Return what happens to a client that gets a message to train."""
    asked, size = Instructions.of(message), len(federation.data.split.train[client])
    return draw(federation.config, asked.server_round, client, examples_of(federation.config, asked.plan, size))


def draw(config: Config, server_round: int, client: int, examples: int) -> Injected:
    """Return what happens to a client in a round in which it passes a number of examples, each pass counted."""
    faults = config.faults
    seconds = faults.seconds_per_example * examples if faults.seconds_per_example else None
    if not faults.may_hit(server_round, client):
        return Injected("", seconds)
    # As many numbers whatever the probabilities: a kind that is added changes none of the others.
    stream = rng(config.seed, "faults", server_round, client)
    chances, in_round = stream.random(len(KINDS)), stream.normal()
    if seconds is not None:
        own = rng(config.seed, "faults", "speed", client).normal()
        seconds *= math.exp(faults.speed_spread * own + faults.round_spread * in_round)
    hits = [kind for kind, chance, p in zip(KINDS, chances, faults.probabilities, strict=True) if chance < p]
    kind = hits[0] if hits else ""
    is_late = seconds is not None and faults.deadline is not None and seconds > faults.deadline
    return Injected(LATE if is_late and KINDS.index(kind or "nan") >= KINDS.index("nan") else kind, seconds)


def examples_of(config: Config, plan: LocalPlan, size: int) -> int:
    """Return how many examples a client passes in training by a plan, each as often as it does.

    Parameters
    ----------
    size
        Number of the client's training examples.
    """
    batch, epochs = min(config.local.batch_size, size), config.local.epochs
    return sum(
        phase.steps * batch if phase.steps is not None else (epochs if phase.epochs is None else phase.epochs) * size
        for phase in plan.phases
    )
