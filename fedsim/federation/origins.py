"""Where each client's examples come from, by the names of the data."""

import numpy as np

from fedsim.config.choices import CATALOGUES
from fedsim.config.tables import PartitionConfig
from fedsim.data import Dataset
from fedsim.shortening import first_few
from partitions import Partition

GIVEN = ("column", "partition_by")  # options in which schemes and Flower's partitioners name a column of ids
FEW = 3  # origins of one client that are named


def origins_of(clients: Partition, dataset: Dataset, settings: PartitionConfig) -> tuple[str, ...]:
    """Return the name of each client's origin, of several the first ones and their number; empty if there are none.

    They are of the column that the scheme's options name, or else of that with the most origins in which every client
    has one, as a saved split may. Names that are the numbers of the clients say nothing and are left out.
    """
    options = CATALOGUES["partitions"].options(settings)
    given = [options[name] for name in GIVEN if isinstance(options.get(name), str) and options[name]]
    owners = np.repeat(np.arange(len(clients)), clients.sizes)
    best: tuple[str, ...] = ()
    most = 0 if given else 1  # an origin that all clients share does not distinguish them
    for column in given or dataset.origins:
        if column not in dataset.origins:
            continue
        names = dataset.origins[column]
        holders, held = np.divmod(np.unique(owners * len(names) + dataset.ids[column][clients.indices]), len(names))
        number = len(np.unique(held))
        if number > most and (given or len(holders) == len(clients)):
            rows = np.split(held, np.flatnonzero(np.diff(holders)) + 1)
            best, most = tuple(first_few([names[each] for each in row], FEW) for row in rows), number
    return best if any(name != str(client) for client, name in enumerate(best)) else ()
