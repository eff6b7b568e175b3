"""Faults of a run that continued: clients that failed, and clients whose worker died."""

from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd

from fedsim.results.files import read_json, read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy.faults import kind_of, name_clients, name_counts

Stage = Literal["train", "accepted", "evaluate", "personal", "loss", "worker"]
COLUMNS = ["round", "client", "stage", "reason", "restored_from"]


def fault_row(
    server_round: int,
    client: int,
    stage: Stage,
    reason: str,
    restored_from: int | None = None,
    injected: str | None = None,
) -> dict[str, Any]:
    """Return one line of ``faults.jsonl``.

    Parameters
    ----------
    stage
        ``train`` where the client's update is left out of the average, ``accepted`` where the strategy has an update
        with an injected fault, ``evaluate`` where a value of it is missing from an evaluation, ``personal`` where what
        it keeps is not finite after training, ``loss`` where only its training loss is not, ``worker`` where its worker
        died and it lost what it had learned since its last checkpoint.
    reason
        Message of the error, in one line.
    restored_from
        Round of the checkpoint that a client was set back to, 0 for its initial state.
    injected
        Kind of the fault of ``[faults]`` that hit the client, if one did.
    """
    values = (server_round, client, stage, reason, restored_from)
    row = dict(zip(COLUMNS, values, strict=True))
    return row | {"injected": True, "kind": injected} if injected else row


def read_faults(folder: RunFolder, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the faults of a run, one row each: the columns of `fault_row`, and ``kind``, what its reason is one of.

    If faults were injected, ``injected`` says which.

    Parameters
    ----------
    metrics
        Rows of ``metrics.jsonl``. Runs of earlier versions have their faults there, without reasons.
    """
    rows: list[dict[Any, Any]] = [*_of_earlier_versions(metrics), *read_rows(folder.faults).to_dict("records")]
    injected = [row.get("injected") is True for row in rows]
    kinds = [
        f"injected {row['kind']}" if is_injected else kind_of(str(row["reason"]))
        for row, is_injected in zip(rows, injected, strict=True)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS).assign(kind=kinds)
    return table.assign(injected=injected) if any(injected) else table


def rounds_without_loss(folder: RunFolder) -> dict[int, int]:
    """Return the last round in which each client had no finite loss after training; without the others."""
    rows = read_rows(folder.faults)
    rows = rows[rows["stage"].isin(["personal", "loss"])] if len(rows) else rows
    return {int(row["client"]): int(row["round"]) for row in rows.to_dict("records")}


def updates_asked_for(folder: RunFolder, rounds: int) -> int:
    """Return how many updates clients were asked for in the first rounds of a run; 0 if that is not known."""
    if not folder.participants.exists():
        return 0
    return sum(map(len, read_json(folder.participants, list)[:rounds]))


def faults_of_run(folder: RunFolder, rounds: int) -> list[str]:
    """Return what went wrong in the first rounds of a run, as `describe_faults` does; nothing if all went well."""
    return describe_faults(read_faults(folder, pd.DataFrame({"metric": []})), updates_asked_for(folder, rounds))


def describe_faults(faults: pd.DataFrame, updates: int) -> list[str]:
    """Return what went wrong, a text for each stage: ``12 of 200 updates left out: not finite (10), it timed out (2)``.

    Parameters
    ----------
    updates
        Number of all updates that clients were asked for; 0 if it is not known.
    """
    if faults.empty:  # which may have no columns
        return []
    of = f" of {updates}" if updates else ""
    texts = []
    for stage, rows in faults.groupby("stage"):
        count, kinds = len(rows), name_counts(rows["kind"])
        plural = "" if count == 1 else "s"
        match stage:
            case "train":
                texts.append(f"{count}{of} update{'s' if of else plural} left out: {kinds}")
            case "evaluate":
                texts.append(f"{count} client evaluation{plural} without values: {kinds}")
            case "accepted":
                texts.append(f"{count}{of} update{'s' if of else plural} accepted with faults: {kinds}")
            case "personal" | "loss":
                are_layers = rows["reason"].str.contains("personal layers").all()
                what = "training loss" if stage == "loss" else "personal layers" if are_layers else "personal state"
                texts.append(f"{what} of {name_clients(sorted(map(int, rows['client'].unique())))} not finite")
            case _:
                texts.append(f"{count} client{plural} set back to a checkpoint: {kinds}")
    return sorted(texts, key=lambda text: "left out" not in text)


def _of_earlier_versions(metrics: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in metrics[metrics["metric"].isin(["left_out", "restored_from"])].to_dict("records"):
        server_round, client = int(row["round"]), int(row["client"])
        if row["metric"] == "restored_from":
            yield fault_row(server_round, client, "worker", "", int(row["value"]))
        else:
            yield fault_row(server_round, client, "train" if row["split"] == "train" else "evaluate", "")
