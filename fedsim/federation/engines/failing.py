"""How Ray reports failures: which of them mean that a worker is dead, and what they say."""

from typing import NoReturn

from ray import exceptions as failures

from fedsim.shortening import one_line

LONGEST = 160  # letters of what Ray says; it may list all that can happen
DEATHS = (
    failures.RayActorError,
    failures.WorkerCrashedError,
    failures.NodeDiedError,
    failures.OutOfMemoryError,
    failures.ObjectLostError,  # the reply was on a node that is gone
)


def reason_of(error: Exception) -> str:
    """Return what Ray says about a failure, in one line: of a worker's death, only how it ended."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    *_, detail = lines[-1].partition("Worker exit detail: ")
    return one_line(detail.partition(". ")[0].rstrip(".") or lines[-1], LONGEST)


def raise_cause(error: failures.RayTaskError) -> NoReturn:
    """Raise what a worker's code raised, without what Ray wraps around it."""
    raise error.cause if isinstance(error.cause, Exception) else error
