"""Tables of the analysis, a file for each round in which it was made."""

from pathlib import Path

import pandas as pd

from fedsim.errors import ConfigError


def read_measured(folder: Path) -> pd.DataFrame:
    """Read the tables of all rounds in a folder, with a column ``round``; empty if there are none.

    The column ``data`` says on what rows were measured: ``server`` where a file does not say it.

    Raises
    ------
    ConfigError
        If a file is damaged.
    """
    frames = []
    for path in sorted(folder.glob("round-*.parquet")):
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{path} is damaged ({reason}); remove the run's folder and run it again") from error
        if "data" not in frame:
            frame["data"] = "server"
        frames.append(frame.assign(round=int(path.stem.removeprefix("round-"))))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
