"""The personalisation procedure of the layer-wise connectivity paper."""

import math
from collections.abc import Sequence

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Strategy

BATCHES = "batches"


class LlmcRule(ClientRule):
    """Sends the number of mini-batches of an epoch."""

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, metrics={BATCHES: math.ceil(len(local.targets) / local.settings.batch_size)})


class Llmc(Strategy, shared="all"):
    """Average one layer group, by mini-batches, in training that never restarts: LLMC personalisation.

    References
    ----------
    Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, personalisation experiments.

    Notes
    -----
    Clients count by their mini-batches in an epoch, not by their examples. How they train is the run's: in the paper
    for 100 epochs with an average every 10, by SGD whose step size follows one schedule and whose momentum is kept.
    That is ``rounds = 10``, and in ``[local]`` ``epochs = 10``, ``batch_size = 64``, ``lr = 0.01``, ``momentum = 0.9``,
    ``weight_decay = 5e-4``, ``optimizer_state = "keep"``, ``schedule = "cosine"`` and ``warmup = 100``.
    """

    client_rule = LlmcRule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        return self.average(updates, [update.metrics[BATCHES] for update in updates])
