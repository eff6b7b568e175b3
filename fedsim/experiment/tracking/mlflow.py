"""MLflow: an experiment of MLflow for each experiment, a run for each run."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fedsim.experiment.tracking.tracker import Sent
from fedsim.experiment.tracking.values import name_from

KEY, ROUND = "fedsim.key", "fedsim.round"
SQLITE = "sqlite:///"
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500  # in one request; letters of a parameter
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each attempt


class MLflow:
    """A run of MLflow, found again by a tag; another tag says which rounds it has."""

    def __init__(self, target: str, run: Sent) -> None:
        self._target, self._run = target, run

    def start(self) -> int:
        """Create the run, or find it and resume it."""
        self._client = MlflowClient(tracking_uri=self._target)
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{self._run.key}'")
        done, known = 0, set[str]()
        if found:
            self._id, done = found[0].info.run_id, int(found[0].data.tags.get(ROUND, 0))
            known = set(found[0].data.params)
            self._client.update_run(self._id, status="RUNNING")
        else:
            created = self._client.create_run(experiment, run_name=self._run.name, tags={KEY: self._run.key})
            self._id = created.info.run_id
        settings = {name_from(key): str(value)[:LONGEST] for key, value in self._run.settings.items()}
        # A kill may have come before some; those that are there may have no other value.
        params = [Param(name, value) for name, value in settings.items() if name not in known]
        for some in _batches(params, MOST_PARAMS):
            self._client.log_batch(self._id, params=some)
        self._unsure = done + 1  # a kill may have come between its values and the tag
        return done

    def send(self, server_round: int, values: Mapping[str, float]) -> None:
        """Send the values of a round, except those that are there."""
        now, tag = int(time.time() * 1000), RunTag(ROUND, str(server_round))
        metrics = [
            Metric(name, value, now, server_round)
            for name, value in values.items()
            if server_round != self._unsure or not self._has(name, server_round)
        ]
        for some in _batches(metrics, MOST_METRICS):
            self._client.log_batch(self._id, metrics=some)
        self._client.log_batch(self._id, tags=[tag])

    def attach(self, report: Path, last_round: int) -> None:
        """Log the page and the figures as artifacts."""
        self._client.log_artifacts(self._id, str(report), "report")

    def close(self, *, complete: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FINISHED" if complete else "FAILED")

    def _has(self, name: str, server_round: int) -> bool:
        return any(metric.step == server_round for metric in self._client.get_metric_history(self._id, name))

    def _experiment(self) -> str:
        place = None
        if self._target.startswith(SQLITE):  # whose artifacts would lie wherever the command was started
            folder = Path(self._target.removeprefix(SQLITE)).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            place = str(folder / "mlruns" / name_from(self._run.group))
        if found := self._client.get_experiment_by_name(self._run.group):
            return str(found.experiment_id)
        try:
            return self._client.create_experiment(self._run.group, artifact_location=place)
        except MlflowException:  # another process was faster
            if found := self._client.get_experiment_by_name(self._run.group):
                return str(found.experiment_id)
            raise


def _batches(entries: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    yield from (entries[start : start + most] for start in range(0, len(entries), most))
