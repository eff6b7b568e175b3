"""The benchmark of whole jobs, with jobs that are only imitated."""

from typing import Any

import pytest

from benchmarks.jobs import OURS, in_turn


def fails(**options: Any) -> dict[str, float]:
    raise RuntimeError("no space is left")


def works(**options: Any) -> dict[str, float]:
    return {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 3.0}


def test_a_peer_that_fails_is_noted_and_a_failure_of_our_own_is_the_error() -> None:
    ours, peer = in_turn({OURS: works, "peer": fails}, 2)
    assert (ours["times_fedsim"], peer["note"]) == (1.0, "no space is left")
    with pytest.raises(RuntimeError, match=r"^the job of fedsim, with which .*, failed: no space is left$"):
        in_turn({OURS: fails, "peer": works}, 2)
