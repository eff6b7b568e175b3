"""The barriers that a strategy wants to know before it aggregates, and their cost for the clients."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from fedsim.analysis import barriers
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.names import AVERAGE
from fedsim.analysis.models import Models
from fedsim.config.choices import method_name
from fedsim.errors import ConfigError
from fedsim.experiment.measuring.uploads import measured_models
from fedsim.federation.client.state import UPLOADED, metric_name
from fedsim.federation.federation import Federation
from fedsim.results.measured import CLUSTER
from fedsim.strategy import ClientBarrier, ClientUpdate, Measurable, Strategy

LOSS_BYTES = 8
logger = logging.getLogger(__name__)
COLUMNS = ["layer", "client", "barrier", "weight", "n"]


def check_wanted(federation: Federation, strategy: Strategy) -> None:
    """Check that there are data to measure on, if the strategy wants barriers in any round.

    Raises
    ------
    ConfigError
        If no client has validation data.
    """
    rounds = range(1, federation.config.rounds + 1)
    if not len(federation.data.split.validation.indices) and any(map(strategy.measurable, rounds)):
        raise ConfigError(
            f"strategy.name = {method_name(federation.config)!r} measures on validation data, but no client has any; "
            "set partition.validation to more than 0"
        )


def wanted_barriers(
    federation: Federation,
    updates: Sequence[ClientUpdate],
    wanted: Measurable,
    threads: int,
    clusters: Sequence[Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Measure the barriers of layers that a strategy wants to know, on validation data.

    Parameters
    ----------
    clusters
        Clients of each average that takes the place of its members' layers; all in one if not given.

    Returns
    -------
    pandas.DataFrame
        One row per layer and client: ``layer, client, barrier`` in nats, ``weight`` by training examples, and ``n``,
        the examples of the client's model; where there are several, also ``cluster``, the average's place among them.
        No row of a client without validation data.
    """
    found = [pd.DataFrame({name: [] for name in COLUMNS})]
    for place, clients in enumerate([[update.client for update in updates]] if clusters is None else clusters):
        table = _barriers(federation, [update for update in updates if update.client in set(clients)], wanted, threads)
        if len(table):
            found.append(table.assign(**{CLUSTER: place} if clusters is not None and len(clusters) > 1 else {}))
    return pd.concat(found[1:] or found, ignore_index=True)


def _barriers(
    federation: Federation, updates: Sequence[ClientUpdate], wanted: Measurable, threads: int
) -> pd.DataFrame:
    """Return the barriers of clients against their own average."""
    data, weights = federation.data, [update.num_examples for update in updates]
    views: list[tuple[list[int], Data]] = []
    if wanted.on == "server" and updates:
        views.append((list(range(len(updates))), Data(*data.validation_sample(wanted.examples), federation.criterion)))
    else:
        for position, update in enumerate(updates):
            inputs, targets = data.client(update.client).validation
            if len(targets):
                views.append(
                    ([position], Data(inputs[: wanted.examples], targets[: wanted.examples], federation.criterion))
                )
    if not views:
        return pd.DataFrame()
    models = Models(federation.model(), measured_models(federation, updates), weights=weights, threads=threads)
    tables = []
    for bases, sample in views:
        ends = [(base, AVERAGE) for base in bases]
        table = barriers(models, sample, groups=wanted.groups, against=ends, references=["own_base"])
        tables.append(table.assign(n=len(sample)))
    table = pd.concat(tables, ignore_index=True).rename(columns={"group": "layer", "loss_own_base": "barrier"})
    clients = table["base"].map(dict(enumerate(update.client for update in updates)))
    return table.assign(client=clients, weight=table["base"].map(dict(enumerate(weights))))[COLUMNS]


def client_barriers(table: pd.DataFrame, wanted: Measurable) -> dict[str, list[ClientBarrier]]:
    """Return the barriers of a table by layer, as a strategy takes them; none of a layer that was not measured."""
    found: dict[str, list[ClientBarrier]] = {name: [] for name in wanted.groups}
    for row in table.to_dict("records"):
        numbers = float(row["barrier"]), float(row["weight"]), int(row["n"]), int(row.get(CLUSTER, 0))
        found[row["layer"]].append(ClientBarrier(int(row["client"]), *numbers))
    broken = [name for name, own in found.items() if not all(math.isfinite(each.nats) for each in own)]
    if broken:
        logger.warning("the barriers of %s are not finite at every client, and count as infinite", ", ".join(broken))
    return found


def wanted_traffic(
    sizes: Mapping[str, int], wanted: Measurable, clusters: Sequence[Sequence[int]]
) -> Iterator[dict[str, int | str]]:
    """Yield the traffic of a measurement on the clients' own data: each average's layers down, a loss for each up."""
    first = {layers[0]: LOSS_BYTES for layers in wanted.groups.values()}
    count = Counter(client for clients in clusters for client in clients)
    for client in sorted(count):
        for name in wanted.layers:
            down, up = count[client] * sizes[name], count[client] * first.get(name, 0)
            yield {"client": client, "set": "barriers", "layer": name, "down": down, "up": up}


def with_passes(updates: Sequence[ClientUpdate], table: pd.DataFrame) -> list[ClientUpdate]:
    """Return the updates with the forward passes that their clients made for a measurement on their own data."""
    passes = table.groupby("client")["n"].agg(lambda n: n.iloc[0] * (1 + len(n)))
    name = metric_name(UPLOADED, "train", "forward_examples")
    return [
        replace(update, metrics={**update.metrics, name: update.metrics[name] + passes.get(update.client, 0)})
        for update in updates
    ]
