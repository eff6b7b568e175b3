"""Weights & Biases: offline in the experiment's folder, unless the user's environment says otherwise."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import wandb

from fedsim.experiment.tracking.tracker import Sent
from fedsim.experiment.tracking.values import name_from


class WeightsAndBiases:
    """A run of Weights & Biases.

    Offline, a resumed run writes all rounds again, into the place of what it wrote before: a kill loses what the
    library has not yet written. Online, the server knows which rounds it has.
    """

    def __init__(self, target: str, run: Sent) -> None:
        self._project, self._run = target, run

    def start(self) -> int:
        """Start the run, or resume it."""
        os.environ.setdefault("WANDB_MODE", "offline")
        if os.environ["WANDB_MODE"] == "offline":
            for folder in (self._run.place / "wandb").glob(f"offline-run-*-{self._run.key}"):
                if not any(folder.glob("*.synced")):
                    shutil.rmtree(folder)
        self._run.place.mkdir(parents=True, exist_ok=True)
        self._open = wandb.init(
            project=self._project,
            id=self._run.key,
            name=self._run.name,
            group=self._run.group,
            config=dict(self._run.settings),
            dir=self._run.place,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        return max(0, self._open.step - 1)  # the next step, which is a round

    def send(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the values of a round at once, with the round as the step."""
        self._open.log(dict(values), step=server_round, commit=True)

    def attach(self, report: Path, last_round: int) -> None:
        """Add the page and the figures, as media and as files of the run."""
        media = {name_from("figures", path.stem): wandb.Image(str(path)) for path in sorted(report.glob("*.png"))}
        self._open.summary.update({**media, "page": wandb.Html(str(report / "report.html"))})
        copy = Path(self._open.dir) / "report"
        shutil.copytree(report, copy, dirs_exist_ok=True)
        self._open.save(str(copy / "*"), base_path=self._open.dir, policy="now")

    def close(self, *, complete: bool) -> None:
        """Finish the run."""
        self._open.finish(exit_code=0 if complete else 1)
