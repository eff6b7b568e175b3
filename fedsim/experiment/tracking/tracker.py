"""What a tracker is: where the records of one run are sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Sent:
    """What trackers receive about a run.

    Parameters
    ----------
    name
        Name of the run: its strategy and its folder.
    group
        Name of the experiment.
    key
        Identity of the run, also against an earlier one in the same folder; stable when it resumes.
    settings
        Values by dotted setting.
    place
        Folder for the files of trackers that write locally.
    """

    name: str
    group: str
    key: str
    settings: Mapping[str, Any]
    place: Path


class Tracker(Protocol):
    """A tracker; its constructor gets where it sends to, as ``[track]`` has it, and the run."""

    def start(self) -> int:
        """Start the run or resume it; return the last round that the tracker surely has."""

    def send(self, server_round: int, values: Mapping[str, float]) -> None:
        """Send the values of the next round."""

    def attach(self, report: Path, last_round: int) -> None:
        """Attach what lies in a folder: the page ``report.html``, and figures as PNG and PDF."""

    def close(self, *, complete: bool) -> None:
        """End what is open; the run is complete, or will be resumed."""
