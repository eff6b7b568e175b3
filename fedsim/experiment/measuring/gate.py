"""The barriers that a strategy needs before it aggregates, and their cost for the clients."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from fedsim.analysis import barriers
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.names import AVERAGE
from fedsim.analysis.models import Models
from fedsim.errors import ConfigError
from fedsim.experiment.measuring.uploads import whole_models
from fedsim.federation.federation import Federation
from fedsim.results.measured import mean_gate_barriers
from fedsim.strategy import ClientUpdate, Measurable, Strategy

LOSS_BYTES = 8
logger = logging.getLogger(__name__)
COLUMNS = ["layer", "client", "barrier", "weight", "n"]


def check_gate(federation: Federation, strategy: Strategy) -> None:
    """Check that there are data to measure on, if the strategy needs barriers in any round.

    Raises
    ------
    ConfigError
        If no client has validation data.
    """
    rounds = range(1, federation.config.rounds + 1)
    if not len(federation.data.split.validation.indices) and any(map(strategy.measurable, rounds)):
        raise ConfigError(
            f"strategy.name = {federation.config.strategy.name!r} measures on validation data, but no client has any; "
            "set partition.validation to more than 0"
        )


def gate_barriers(
    federation: Federation, updates: Sequence[ClientUpdate], gate: Measurable, threads: int
) -> pd.DataFrame:
    """Measure the barriers of layers that a strategy needs, on validation data.

    Returns
    -------
    pandas.DataFrame
        One row per layer and client: ``layer, client, barrier`` in nats, ``weight`` by training examples, and ``n``,
        the examples of the client's model. No row of a client without validation data.
    """
    data, weights = federation.data, [update.num_examples for update in updates]
    views: list[tuple[list[int], Data]] = []
    if gate.on == "server" and updates:
        views.append((list(range(len(updates))), Data(*data.validation_sample(gate.examples), federation.criterion)))
    else:
        for position, update in enumerate(updates):
            inputs, targets = data.client(update.client).validation
            if len(targets):
                views.append(
                    ([position], Data(inputs[: gate.examples], targets[: gate.examples], federation.criterion))
                )
    if not views:
        return pd.DataFrame({name: [] for name in COLUMNS})
    models = Models(federation.model(), whole_models(federation, updates), weights=weights, threads=threads)
    tables = []
    for bases, sample in views:
        ends = [(base, AVERAGE) for base in bases]
        table = barriers(models, sample, groups="layers", against=ends, references=["own_base"])
        tables.append(table[table["group"].isin(gate.layers)].assign(n=len(sample)))
    table = pd.concat(tables, ignore_index=True).rename(columns={"group": "layer", "loss_own_base": "barrier"})
    clients = table["base"].map(dict(enumerate(update.client for update in updates)))
    found = table.assign(client=clients, weight=table["base"].map(dict(enumerate(weights))))
    return found[COLUMNS]


def mean_barriers(table: pd.DataFrame, gate: Measurable) -> Mapping[str, float]:
    """Return each layer's mean barrier over the clients, weighted by training examples.

    It is infinite without a client, or where one's is not finite.
    """
    means = {str(name): mean for (name,), mean in mean_gate_barriers(table, ["layer"]).items()}
    if broken := [name for name, mean in means.items() if not np.isfinite(mean)]:
        logger.warning("the barriers of %s are not finite at every client, and count as infinite", ", ".join(broken))
    return dict.fromkeys(gate.layers, np.inf) | {name: mean for name, mean in means.items() if name not in broken}


def gate_traffic(sizes: Mapping[str, int], gate: Measurable, clients: Sequence[int]) -> Iterator[dict[str, int | str]]:
    """Yield the traffic of a measurement on the clients' own data: the average of each layer down, a loss up."""
    for client in clients:
        for name in gate.layers:
            yield {"client": client, "set": "barriers", "layer": name, "down": sizes[name], "up": LOSS_BYTES}
