"""The checks for a GPU run on a CPU, where they compare equal numbers."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_the_checks_of_a_gpu_pass_on_a_cpu_and_notice_another_model() -> None:
    rows = [
        *gpu.check_training("adamw", "cpu", (2,)),
        *gpu.check_barriers("cpu", 8),
        *gpu.check_connectivity("cpu", 8),
        *gpu.check_matching("cpu"),
    ]
    assert [row["check"] for row in rows] == [
        "training, adamw",
        "cohort of 2, adamw",
        "barriers",
        "connectivity",
        "matching",
    ]
    assert all(row["passed"] for row in rows), rows
    first, second = gpu.states_of(2, "cpu")
    assert gpu.distance(second, first, dict(gpu.make_model(dropout=False).state_dict())) > gpu.TOLERANCE


def test_a_check_that_cannot_be_imported_is_left_out_and_one_that_fails_is_not_passed() -> None:
    def missing() -> list[gpu.Row]:
        raise ModuleNotFoundError("No module named 'pandas'")

    def mixed() -> list[gpu.Row]:
        raise RuntimeError("expected all tensors\non the same device")

    (left_out,), (failed,) = gpu.attempted("a", missing), gpu.attempted("b", mixed)
    assert (left_out["passed"], left_out["note"]) == (None, "left out: No module named 'pandas'")
    assert (failed["passed"], failed["note"]) == (False, "expected all tensors on the same device")


def test_a_value_that_only_one_device_has_is_an_infinite_error() -> None:
    first = np.array([[1.0, np.nan], [3.0, 4.0]])
    assert gpu.table_error(first, first) == 0
    assert gpu.table_error(first, np.array([[1.0, np.nan], [3.0, 4.5]])) == 0.1
    assert gpu.table_error(first, np.array([[1.0, np.nan], [np.nan, 4.0]])) == np.inf
    assert gpu.table_error(first, np.array([[1.0, 2.0], [3.0, 4.0]])) == np.inf


@pytest.mark.parametrize("step", ["", "gpu.py", "barriers.py"])
def test_the_script_runs_all_steps_and_fails_if_one_does(tmp_path: Path, step: str) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\necho "ran $1"\n[ "$1" != "benchmarks/{step}" ]\n')
    python.chmod(0o755)
    script = Path(gpu.__file__).with_name("gpu.sh")
    found = subprocess.run(
        ["bash", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == (1 if step else 0)
    assert [line for line in found.stdout.splitlines() if line.startswith("ran")] == [
        "ran benchmarks/gpu.py",
        "ran benchmarks/training.py",
        "ran benchmarks/barriers.py",
    ]
    assert (f"benchmarks/{step}: failed with 1" in found.stdout) == bool(step)
