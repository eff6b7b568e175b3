"""The cost of measuring barriers, and how often to measure them."""

import math
from dataclasses import dataclass

import numpy as np

from fedsim.analysis.mixing.groups import groups_of_texts, named_groups
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Recipe, list_mixes
from fedsim.analysis.mixing.paths import MixingPath
from fedsim.experiment.measuring.uploads import pairs_of
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants

# ``every = "auto"`` takes at most this share of the training's work, and holds at most this many bytes of models.
AUTO_SHARE, AUTO_BYTES = 0.1, 2**30
# A training step passes forward, and backward to activations and to weights.
PASSES_TO_TRAIN = 3


@dataclass(frozen=True)
class BarrierCost:
    """The cost of one round's barriers, in forward passes of one example through the whole model.

    Parameters
    ----------
    models
        Number of different models to evaluate, over all ways of ``[barriers] matching`` and all paths.
    examples
        Number of examples, of all kinds of data together.
    passes, passes_apart
        Passes as computed, and if each model were evaluated separately.
    training_passes
        Passes of a round's training, forward and backward.
    """

    models: int
    examples: int
    passes: float
    passes_apart: float
    training_passes: float


def barrier_cost(federation: Federation) -> BarrierCost:
    """Count the cost of the first round's barriers; rounds with as many participants cost the same."""
    config, data = federation.config, federation.data
    training = participants(config, 1)
    states, settings = len(training), config.barriers
    probes = data.test(2)[0]
    model, initial = federation.model(), [federation.initial] * (states + 1)
    models = MixedModels(model, initial)
    paths = [MixingPath(models, initial, np.full(states, 1 / states), model, path) for path in settings.path]
    named = named_groups(federation.layers, groups_of_texts(config.barriers.groups), config.seed)
    mixes = list(list_mixes(named, states, "average"))
    if pairs := pairs_of(config, states):
        mixes += list_mixes(named, states, pairs, settings.ts)
    whole, share, count = models.flops([models.own(0)], probes), 0.0, 0
    for path in paths:
        recipes: dict[Recipe, None] = dict.fromkeys(models.own(state) for state in range(states))
        for mix in mixes:
            recipes |= {path.recipe(mix): None, path.recipe(mix, 1.0): None}
        flops = models.flops(recipes, probes)
        count += len(recipes)
        share += flops / whole if flops and whole else float(len(recipes))  # in passes through the whole model
    available = {
        "server": [len(data.dataset.test)],
        "train": [len(data.trained_on)],
        "clients": [len(data.split.test[client]) for client in training],
    }
    # On its own data each client's model is mixed, the others are only evaluated.
    examples = {name: sum(min(settings.examples, size) for size in available[name]) for name in settings.on}
    mixed = sum(n / (states if name == "clients" else 1) for name, n in examples.items())
    trained = sum(len(data.split.train[client]) for client in training)
    ways = len(settings.matching)
    return BarrierCost(
        models=ways * count,
        examples=sum(examples.values()),
        passes=ways * share * mixed,
        passes_apart=ways * count * mixed,
        training_passes=float(PASSES_TO_TRAIN * config.local.epochs * trained),
    )


def rounds_between(federation: Federation) -> int:
    """Return the number of rounds from one measurement to the next; 0 for none.

    With ``every = "auto"`` the barriers take a tenth of the training's work at most; none are measured where even one
    round of them would take more, or the models of a round take more than 1 GiB.
    """
    config = federation.config
    if config.barriers.every != "auto":
        return int(config.barriers.every)
    if len(participants(config, 1)) * sum(value.nbytes for value in federation.initial.values()) > AUTO_BYTES:
        return 0
    cost = barrier_cost(federation)
    every = max(1, math.ceil(cost.passes / (AUTO_SHARE * cost.training_passes)))
    return every if every <= config.rounds else 0
