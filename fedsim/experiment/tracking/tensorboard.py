"""TensorBoard: event files in a folder for each run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fedsim.experiment.tracking.tracker import Sent
from fedsim.experiment.tracking.values import name_from


class TensorBoard:
    """Event files. A resumed run writes all rounds again, and TensorBoard forgets what the files before had of it."""

    def __init__(self, target: str, run: Sent) -> None:
        self._run = run

    def start(self) -> int:
        """Start a new file, from whose first step on those before it do not count."""
        folder = self._run.place / "tensorboard" / name_from(self._run.name.replace(" ", "-"))
        self._writer = SummaryWriter(str(folder), purge_step=0)
        rows = [f"| {key} | {_cell(value)} |" for key, value in self._run.settings.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)
        return 0

    def send(self, server_round: int, values: Mapping[str, float]) -> None:
        """Write the values of a round."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def attach(self, report: Path, last_round: int) -> None:
        """Write the figures; a page cannot be shown, and stays in the run's folder."""
        for path in sorted(report.glob("*.png")):
            with Image.open(path) as image:
                self._writer.add_image(
                    name_from("figures", path.stem), np.asarray(image.convert("RGB")), last_round, dataformats="HWC"
                )

    def close(self, *, complete: bool) -> None:
        """Close the file."""
        self._writer.close()


def _cell(value: object) -> str:
    return f"`{value}`".replace("|", "&#124;").replace("\n", " ")
