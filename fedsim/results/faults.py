"""Faults of a run that continued: clients that failed, and clients whose worker died."""

from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd

from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder

Stage = Literal["train", "evaluate", "worker"]
COLUMNS = ["round", "client", "stage", "reason", "restored_from"]


def fault_row(
    server_round: int, client: int, stage: Stage, reason: str, restored_from: int | None = None
) -> dict[str, Any]:
    """Return one line of ``faults.jsonl``.

    Parameters
    ----------
    stage
        ``train`` where the client's update is left out of the average, ``evaluate`` where it is missing from an
        evaluation, ``worker`` where its worker died and it lost what it had learned since its last checkpoint.
    reason
        Message of the error, in one line.
    restored_from
        Round of the checkpoint that a client was set back to, 0 for its initial state.
    """
    values = (server_round, client, stage, reason, restored_from)
    return dict(zip(COLUMNS, values, strict=True))


def read_faults(folder: RunFolder, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the faults of a run, one row each, with the columns of `fault_row`.

    Parameters
    ----------
    metrics
        Rows of ``metrics.jsonl``. Runs of earlier versions have their faults there, without reasons.
    """
    rows = [*_of_earlier_versions(metrics), *read_rows(folder.faults).to_dict("records")]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_earlier_versions(metrics: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in metrics[metrics["metric"].isin(["left_out", "restored_from"])].to_dict("records"):
        server_round, client = int(row["round"]), int(row["client"])
        if row["metric"] == "restored_from":
            yield fault_row(server_round, client, "worker", "", int(row["value"]))
        else:
            yield fault_row(server_round, client, "train" if row["split"] == "train" else "evaluate", "")
