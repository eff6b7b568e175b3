"""A short part of the soak, of which ``docs/reliability.md`` tells; ``make soak`` runs it for as long as asked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kills_damage_and_made_up_input_give_the_same_bytes_or_a_line() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--short"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
