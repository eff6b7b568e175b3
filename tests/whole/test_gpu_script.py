"""The checks for a GPU run on a CPU, where they compare equal numbers."""

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
