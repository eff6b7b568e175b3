"""From a table, by the command line, to the names of hospitals in what a run prints and leaves behind."""

from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Command

NAMES = ("St. Mary", "Berlin", "<b>Köln</b>", "007")
EXPERIMENT = """
clients = 4
rounds = 1
unseen = 0.25
[data]
name = "table"
path = "rows.csv"
target = ["ill"]
id = ["hospital"]
[partition]
scheme = "natural"
[model]
name = "mlp"
hidden = [4]
[engine]
workers = 1
"""


def test_a_hospital_is_known_by_its_name_wherever_its_client_is_shown(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"hospital": NAMES[i % 4], "age": i % 17, "ill": i // 4 % 2} for i in range(160)]
    pd.DataFrame(rows).to_csv("rows.csv", index=False)
    Path("study.toml").write_text(EXPERIMENT)
    shown = [f"{client} ({name})" for client, name in enumerate(sorted(NAMES))]
    for arguments in (("partition", "study.toml"), ("run", "study.toml", "--dry-run")):
        code, out, _ = command(*arguments)
        assert code == 0
        found = [line for line in out.splitlines() if line.startswith("client ")]
        assert all(line.startswith(f"client {each}:") for line, each in zip(found, shown, strict=True))
    [unseen] = [line for line in out.splitlines() if "never train" in line]
    assert unseen.partition(": ")[2] in shown

    assert command("run", "study.toml")[0] == 0
    [folder] = (path.parent for path in (tmp_path / "runs/study").glob("*/DONE"))
    assert pd.read_parquet(folder / "partition.parquet")["origin"].tolist() == sorted(NAMES)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Berlin" in page
    assert "<b>Köln" not in page
