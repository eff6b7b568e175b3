"""Trackers, fed from a run's records: what one lacks it is sent later, so that no failure of it loses anything."""

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.config.toml import short_hash
from fedsim.errors import ConfigError, first_line, system_line
from fedsim.experiment.finished import FinishedRun
from fedsim.experiment.tracking.callback import ActiveRun
from fedsim.experiment.tracking.tracker import Sent, Tracker
from fedsim.experiment.tracking.values import GrowingRecords, Values
from fedsim.lazy import LazyTable
from fedsim.results import report
from fedsim.results.files import read_json, write_json
from fedsim.results.folder import RunFolder
from fedsim.shortening import one_line, printable

HERE = "fedsim.experiment.tracking"
TRACKERS: LazyTable[Callable[[str, Sent], Tracker]] = LazyTable(
    {
        "tensorboard": f"{HERE}.tensorboard:TensorBoard",
        "wandb": f"{HERE}.wandb:WeightsAndBiases",
        "mlflow": f"{HERE}.mlflow:MLflow",
        "trackio": f"{HERE}.trackio:Trackio",
    }
)
# Read when the packages are imported: nothing is sent to their makers, and a server that is away is soon given up.
QUIET = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
logger = logging.getLogger(__name__)


def check_trackers(config: Config) -> None:
    """Check that the packages of all trackers are installed; they are not imported.

    Raises
    ------
    ConfigError
        If one is not.
    """
    for name in config.track.wanted:
        if find_spec(name) is None:
            raise ConfigError(
                f"track.{name} needs the package {name}, which is not installed; install it with "
                f"pip install 'fedsim-layerwise[{name}]', or remove the setting"
            )


def folder_of(run: ActiveRun) -> Path:
    """Return the folder in which the trackers of an experiment's runs keep their files."""
    return run.path.parent / "tracking"


@dataclass
class _Line:
    """What is sent to one tracker."""

    name: str
    target: str
    tracker: Tracker | None = None
    sent: int = 0
    failed: bool = False
    warned: bool = False


class Feed:
    """Sends the records of a run to its trackers.

    An exception of a tracker is a warning, once; the run continues, and what is missing is sent at its end, or when the
    same command is run again.
    """

    def __init__(self, run: ActiveRun) -> None:
        self._run, self._folder = run, RunFolder(run.path)
        self._lines = [_Line(name, target) for name, target in run.config.track.wanted.items()]
        self._records = GrowingRecords(self._folder)
        self._values: dict[int, Values] = {}
        for name, value in QUIET.items() if self._lines else ():
            os.environ.setdefault(name, value)

    @property
    def is_wanted(self) -> bool:
        """Whether there is any tracker."""
        return bool(self._lines)

    def send(self) -> None:
        """Send the rounds that trackers do not have yet."""
        self._values |= self._records.new() if self._lines else {}
        for line in self._lines:
            if not line.failed and line.tracker is None:
                self._open(line)
            self._guarded(line, partial(self._bring_up, line))

    def end(self, result: FinishedRun) -> None:
        """Send what is missing, the page and the figures, and write down who has them; a complete run ends so."""
        if not self.is_wanted:
            return
        for line in self._lines:
            line.failed = False  # a last attempt
        self.send()
        last = max(self._values, default=0)
        with ExitStack() as temporary:
            page = cache(lambda: _written(result, temporary))
            for line in self._lines:
                self._guarded(line, lambda tracker: tracker.attach(page(), last))
        self.close(complete=True)
        if lacking := [line.name for line in self._lines if line.failed]:
            names = " and ".join(lacking)
            logger.warning("%s is missing part of the run; rerun the same command to send the rest", names)
        # Those that the run had before are not sent it again when it has them again.
        known = dict.fromkeys([*self._known(), *map(self._mark, self._lines)])
        lost = [self._mark(line) for line in self._lines if line.failed]
        try:
            write_json(self._ended, [mark for mark in known if mark not in lost])
        except OSError as error:
            logger.warning("%s; the same command will send the run to its trackers again", system_line(error))

    def close(self, *, complete: bool = False) -> None:
        """End what is open; the run will be resumed, unless it is complete."""
        for line in self._lines:
            self._guarded(line, lambda tracker: tracker.close(complete=complete))
            line.tracker = None

    def has_ended(self) -> bool:
        """Whether each tracker has all of a run that is complete."""
        known = self._known()
        return all(self._mark(line) in known for line in self._lines)

    def _known(self) -> list[str]:
        """Return the marks of the trackers that have all of the run, of earlier starts too."""
        try:
            return [str(mark) for mark in read_json(self._ended, list)] if self._ended.exists() else []
        except ConfigError:
            return []

    @property
    def _ended(self) -> Path:
        return folder_of(self._run) / f"{self._run.path.name}.json"

    def _mark(self, line: _Line) -> str:
        return short_hash({"tracker": line.name, "target": line.target, "run": self._key, "rounds": self._rounds})

    @property
    def _key(self) -> str:
        """Identity of the run, also against an earlier one in the same folder: its name and first start."""
        return f"{self._run.path.name}-{short_hash({'started': self._folder.started})}"

    @property
    def _rounds(self) -> int:
        return max(self._folder.manifests(), default=0)

    def _bring_up(self, line: _Line, tracker: Tracker) -> None:
        for server_round in sorted(self._values):
            if server_round > line.sent:
                tracker.send(server_round, self._values[server_round])
                line.sent = server_round

    def _open(self, line: _Line) -> None:
        config, place = self._run.config, folder_of(self._run)
        name = printable(f"{CATALOGUES['strategies'].label(config.strategy)} {self._run.path.name}")
        sent = Sent(name, self._run.experiment, self._key, self._run.settings, place)
        with _surviving(line):
            place.mkdir(parents=True, exist_ok=True)
            with FileLock(place / ".lock"):  # several runs would create the same database at once
                tracker = TRACKERS[line.name](line.target, sent)
                line.sent = tracker.start()
            line.tracker = tracker

    @staticmethod
    def _guarded(line: _Line, work: Callable[[Tracker], None]) -> None:
        if line.tracker:
            with _surviving(line):
                work(line.tracker)


def _written(result: FinishedRun, temporary: ExitStack) -> Path:
    """Write the page and the figures into a temporary folder, and return it."""
    folder = Path(temporary.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
    report.write_run(result, folder, export=True)
    return folder


@contextmanager
def _surviving(line: _Line) -> Iterator[None]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of the packages, to their makers
            yield
    except Exception as error:  # a network, a disk, a version: whatever it is, the run matters more
        line.failed = True
        if line.tracker:
            with suppress(Exception):
                line.tracker.close(complete=False)
            line.tracker = None
        if not line.warned:
            reason = PASSWORD.sub("...", one_line(first_line(error)))
            logger.warning("%s failed (%s); fedsim will retry at the end of the run", line.name, reason)
        line.warned = True


def catch_up(run: ActiveRun, read: Callable[[], FinishedRun]) -> bool:
    """Send a complete run to the trackers that do not have all of it; return whether there were any.

    Parameters
    ----------
    read
        Reads its results.
    """
    feed = Feed(run)
    if feed.has_ended():
        return False
    feed.end(read())
    return True
