"""Trackio: a local database, unless the user's environment names a server."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import trackio
from trackio.sqlite_storage import SQLiteStorage

from fedsim.experiment.tracking.tracker import Sent
from fedsim.experiment.tracking.values import name_from


class Trackio:
    """A run of Trackio, found again by its name, which has the run's key; its last step is the last round it has."""

    def __init__(self, target: str, run: Sent) -> None:
        self._project, self._run = target, run
        self._name = f"{run.name} {run.key}"

    def start(self) -> int:
        """Start the run, or resume it."""
        last = SQLiteStorage.get_max_step_for_run(self._project, self._name)
        with redirect_stdout(io.StringIO()):
            self._open = trackio.init(
                project=self._project,
                name=self._name,
                group=self._run.group,
                config=dict(self._run.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return last or 0

    def send(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the values of a round at once, with the round as the step."""
        self._open.log(dict(values), step=server_round)

    def attach(self, report: Path, last_round: int) -> None:
        """Log the figures with the last round, and the page with them as one artifact."""
        self._open.log(
            {name_from("figures", path.stem): trackio.Image(str(path)) for path in sorted(report.glob("*.png"))},
            step=last_round,
        )
        self._open.log_artifact(str(report), name=name_from(self._run.key), type="report", overwrite=True)

    def close(self, *, complete: bool) -> None:
        """Finish the run, which sends what is left."""
        with redirect_stdout(io.StringIO()):
            trackio.finish()  # not the run's own method, after which it would be finished again as Python ends
