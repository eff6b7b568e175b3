"""What a run achieved, read from its folder."""

import json
import logging
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from fedsim.config import Config, choices, naming
from fedsim.config.content import PATHS
from fedsim.config.toml import flat, short_hash
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.best_round import best_round, validation_means
from fedsim.results.faults import read_faults, updates_asked_for
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.measured import read_measured
from fedsim.training.metrics import MAIN, meant

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """One run with its records.

    Parameters
    ----------
    metrics
        Columns ``round, client, split, model, metric, value, n``; client is NaN for the server.
    communication
        Columns ``round, client, layer, down, up`` in bytes; in newer runs also ``set``, of which parameters.
    timing
        Column ``round`` and one column of wall seconds per part of a round.
    barriers
        The rows of `fedsim.analysis.barriers` with columns ``round``, ``data``, ``matching`` and ``path``; empty if
        none were measured.
    heterogeneity
        Sizes and labels of the clients.
    """

    folder: RunFolder
    config: Config
    metrics: pd.DataFrame
    communication: pd.DataFrame
    timing: pd.DataFrame
    barriers: pd.DataFrame
    heterogeneity: Heterogeneity

    @cached_property
    def named_by(self) -> dict[str, Any] | None:
        """The settings and contents that the run was named by, if it has custom parts or files of the user's."""
        return self.folder.named_by

    @cached_property
    def _changed(self) -> dict[str, Any]:
        """What the run was named by, or what its config says of that: the code and the files may be gone."""
        return self.named_by or naming.recorded_settings(self.config)

    @property
    def strategy(self) -> str:
        """The strategy by the name that papers call it, with the options that differ from their defaults."""
        return choices.CATALOGUES["strategies"].label(self.config.strategy, self._changed.get("strategy", {}))

    @property
    def data(self) -> str:
        """The data set's name, and the file or folder of a user's own data."""
        path = self.config.data.options.get("path")
        return f"{self.config.data.name} {Path(path).name}" if isinstance(path, str) and path else self.config.data.name

    @property
    def setting(self) -> str:
        """What the run has in common with those of other seeds: its folder's name without the seed."""
        named = re.fullmatch(r"([0-9a-f]{8})-s\d+", self.folder.path.resolve().name)
        return named[1] if named else short_hash(self._changed)

    @cached_property
    def changed_settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, and the content of files, with dotted keys."""
        return flat(json.loads(json.dumps(self._changed, default=str)))

    @cached_property
    def shown_settings(self) -> dict[str, Any]:
        """All settings with dotted keys; those that name files with their content, and the sources of custom parts."""
        resolved = flat(self.config.model_dump(mode="json"))
        if self.named_by:
            for key, value in self.changed_settings.items():
                is_path = key.rpartition(".")[2] in PATHS and resolved.get(key) != value
                resolved[key] = f"{Path(str(resolved[key])).name} {value}" if is_path else value
        return resolved

    @cached_property
    def partition_name(self) -> str:
        """What runs have in common whose clients hold the same."""
        return naming.partition_name(self.config, self._changed)

    @cached_property
    def evaluated(self) -> int:
        """The last round with an evaluation."""
        return int(self.of("personalised")["round"].max())

    def of(self, model: str, metric: str = "accuracy", split: str = "test", *, server: bool = False) -> pd.DataFrame:
        """Return the rows of one metric of one model, of the clients or of the server.

        Of a run without accuracy, ``accuracy`` is its main metric, here and in all else that takes a metric.
        """
        return self._rows.get((model, self.meant(metric), split, server), self.metrics.iloc[:0])

    @cached_property
    def main(self) -> str:
        """The metric that reports show first: accuracy, or, where numbers are predicted, their RMSE."""
        return self.meant(MAIN)

    @cached_property
    def metric_names(self) -> frozenset[str]:
        """Names of the metrics that are in the records."""
        return frozenset(self.metrics["metric"].unique())

    def meant(self, metric: str) -> str:
        """Return the metric that is meant: of a run without accuracy, ``accuracy`` is its main metric."""
        return meant(metric, self.metric_names)

    @cached_property
    def _rows(self) -> dict[Any, pd.DataFrame]:
        """The metrics by model, metric, split and whether they are the server's; searched often."""
        table = self.metrics
        keys = [table["model"], table["metric"], table["split"], table["client"].isna()]
        return dict(iter(table.groupby(keys, observed=True, sort=False)))

    @cached_property
    def _memory(self) -> dict[Hashable, Any]:
        return {}

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what was computed of this run under a key, which a comparison asks for many times."""
        if key not in self._memory:
            self._memory[key] = compute()
        found: T = self._memory[key]
        return found

    def by_client(
        self, model: str, metric: str = "accuracy", *, split: str = "test", server_round: int | None = None
    ) -> pd.Series:
        """Return a metric on each client's own data in a round, the last evaluated one if not given, by client.

        It is NaN for a client whose loss is not finite, or that could not be evaluated.
        """
        wanted = self.evaluated if server_round is None else server_round

        def compute() -> pd.Series:
            rows = self.of(model, metric, split)
            return rows[rows["round"] == wanted].set_index("client")["value"].sort_index()

        return self.remembered(("by client", model, self.meant(metric), split, wanted), compute).copy()

    def mean_by_round(self, model: str = "personalised", metric: str = "accuracy", split: str = "test") -> pd.Series:
        """Return the mean over the clients by round; NaN where one client's value is not finite."""

        def compute() -> pd.Series:
            values = self.of(model, metric, split).groupby("round")["value"]
            return values.mean().where(values.count() == values.size())

        return self.remembered(("mean by round", model, self.meant(metric), split), compute).copy()

    def best_round(self, metric: str = "accuracy") -> int | None:
        """Return the first round with the best mean over the clients' validation data; None if there is none."""
        metric = self.meant(metric)

        def compute() -> int | None:
            table = self.of("personalised", metric, "validation")
            rows = ({str(key): value for key, value in row.items()} for row in table.to_dict("records"))
            return best_round(validation_means(rows, metric), metric)

        return self.remembered(("best round", metric), compute)

    @cached_property
    def faults(self) -> pd.DataFrame:
        """Clients that failed, with columns ``round, client, stage, reason, restored_from, kind``."""
        return read_faults(self.folder, self.metrics)

    @cached_property
    def variances(self) -> pd.DataFrame:
        """The variance of each shared layer's weights by round; columns ``round, layer, variance, ratio``.

        ``variance`` is the clients' mean, and ``ratio`` what the global model has of it after the round.
        """
        rows = read_rows(self.folder.variances)
        return rows if len(rows) else pd.DataFrame(columns=["round", "layer", "variance", "ratio"])

    @property
    def left_out(self) -> int:
        """Number of updates that are left out of an average."""
        return int((self.faults["stage"] == "train").sum())

    @cached_property
    def updates(self) -> int:
        """Number of updates that clients were asked for in the rounds with records."""
        return updates_asked_for(self.folder, int(self.metrics["round"].max()))

    def on_server(self, model: str, metric: str = "accuracy") -> pd.Series:
        """Return a metric on the server's test data by round."""
        return self.of(model, metric, server=True).set_index("round")["value"]

    @property
    def bytes_total(self) -> int:
        """Bytes up and down over all rounds and clients."""
        return int(self.communication[["up", "down"]].to_numpy().sum()) if len(self.communication) else 0

    def measured(self, name: str) -> pd.DataFrame:
        """Return another table of the analysis, such as ``distances``; empty if it was not measured.

        Its columns are those of the function of that name in `fedsim.analysis`, and ``round``, ``data``,
        ``matching`` and ``path``.

        Raises
        ------
        ConfigError
            If a file is damaged.
        """
        return read_measured(self.folder.path / name)

    def seconds_of(self, part: str) -> float:
        """Return the wall seconds of a part of all rounds, such as ``barriers``; 0 if there was none."""
        return float(np.nansum(self.timing[part].to_numpy(dtype=float))) if part in self.timing else 0.0

    @property
    def simulated_seconds(self) -> pd.Series:
        """Simulated seconds of ``[faults]`` by round; empty without simulated time."""
        return self.of("uploaded", "simulated_seconds", "train", server=True).set_index("round")["value"].astype(float)

    @property
    def seconds_total(self) -> float:
        """Wall seconds of all rounds, without starting up."""
        return float(self.timing.drop(columns="round", errors="ignore").to_numpy(na_value=0.0).sum())
