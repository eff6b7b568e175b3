"""The partitioners of Flower Datasets as schemes, so that its users keep their splits; imported when one is used."""

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from fedsim.errors import ConfigError
from fedsim.lazy import LazyTable, Place

if TYPE_CHECKING:
    import numpy as np

    from partitions import Partition

logger = logging.getLogger(__name__)
PREFIX = "flwr_datasets:"
EXTRA = "flwr-datasets"
LABEL = "label"
POSITION = "fedsim_position"
TEXT = "Split as Flower's {} does.\n\nReferences\n----------\nFlower Datasets."
NO_SCHEMES = {
    "IdToSizeFncPartitioner": "it takes a function; use 'flwr_datasets:SizePartitioner' with the sizes",
    "VerticalEvenPartitioner": "it splits the columns of a table, and clients hold whole examples; use another one",
    "VerticalSizePartitioner": "it splits the columns of a table, and clients hold whole examples; use another one",
}
# Where a parameter also takes what TOML does not have.
WRITTEN: Mapping[str, Any] = {
    "alpha": float | list[float],
    "partition_sizes": list[int],
    "distribution_array": list[list[float]],
}


@dataclass(frozen=True)
class FlowerPartitioner(Place):
    """A partitioner of Flower Datasets, which becomes a scheme as it is imported."""

    def load(self) -> Any:
        """Return the scheme.

        Raises
        ------
        ConfigError
            If Flower Datasets is not installed.
        """
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when it is imported
        try:
            return scheme_of(super().load())
        except ImportError as error:
            raise ConfigError(
                f"partition.scheme = '{PREFIX}{self.name}' needs Flower Datasets ({error}); install it with "
                f"pip install 'fedsim-layerwise[{EXTRA}]'"
            ) from error

    def docstring(self) -> str:
        """Return a sentence; Flower Datasets need not be there for it."""
        return TEXT.format(self.name)


FLOWER_PARTITIONERS: LazyTable[Callable[..., Any]] = LazyTable(
    {
        PREFIX + name: FlowerPartitioner("flwr_datasets.partitioner", name)
        for name in (
            "ContinuousPartitioner",
            "DirichletPartitioner",
            "DistributionPartitioner",
            "ExponentialPartitioner",
            "GroupedNaturalIdPartitioner",
            "IidPartitioner",
            "InnerDirichletPartitioner",
            "LinearPartitioner",
            "NaturalIdPartitioner",
            "PathologicalPartitioner",
            "ShardPartitioner",
            "SizePartitioner",
            "SquarePartitioner",
        )
    }
)


def scheme_of(partitioner: type) -> Callable[..., "Partition"]:
    """Return a scheme that splits as a partitioner does.

    Its options are the partitioner's, except for the number of partitions, which is the run's. ``partition_by`` is
    ``label`` or an id column of the data. With a ``seed`` the split is the one that Flower makes with it; without, it
    follows from the run's.
    """
    parameters = inspect.signature(partitioner).parameters

    def scheme(
        labels: "np.ndarray",
        clients: int,
        rng: "np.random.Generator",
        *,
        ids: Mapping[str, "np.ndarray"],
        **options: Any,
    ) -> "Partition":
        import numpy as np
        from datasets import Dataset

        from partitions import Partition

        columns = {**ids, LABEL: labels}
        given = dict(options)
        if "partition_by" in parameters and given["partition_by"] not in columns:
            raise ValueError(
                f"partition_by = {given['partition_by']!r} is no column; columns are: {', '.join(columns)}"
            )
        if "num_partitions" in parameters:
            given["num_partitions"] = clients
        if "distribution_array" in given:
            given["distribution_array"] = np.array(given["distribution_array"])
        if "seed" in parameters and given["seed"] is None:
            given["seed"] = int(rng.integers(2**31))
        made = partitioner(**given)
        made.dataset = Dataset.from_dict(columns | {POSITION: np.arange(len(labels))})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if made.num_partitions != clients:
                raise ValueError(
                    f"{partitioner.__name__} makes {made.num_partitions} partitions and there are {clients} clients; "
                    f"set clients = {made.num_partitions}"
                )
            held = [np.array(made.load_partition(client)[POSITION], dtype=np.int64) for client in range(clients)]
        for text in dict.fromkeys(str(each.message) for each in said if each.category is UserWarning):
            logger.warning("%s: %s", partitioner.__name__, text)
        return Partition(np.concatenate(held), np.cumsum([0, *map(len, held)]))

    scheme.__doc__ = TEXT.format(partitioner.__name__)
    scheme.option_schema = lambda: _options_of(partitioner)  # type: ignore[attr-defined]
    return scheme


def _options_of(partitioner: type) -> type[BaseModel]:
    hints = get_type_hints(partitioner.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(partitioner).parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        if name == "seed":
            default = None
        elif name == "partition_by":
            default = LABEL
        if name != "num_partitions":
            fields[name] = (WRITTEN.get(name, hints[name]), default)
    return create_model("Options", __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)
