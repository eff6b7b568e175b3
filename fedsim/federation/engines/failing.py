"""How Ray reports failures: which of them mean that a worker is dead, and what they say."""

from typing import NoReturn

from ray import exceptions as failures

DEATHS = (
    failures.RayActorError,
    failures.WorkerCrashedError,
    failures.NodeDiedError,
    failures.OutOfMemoryError,
    failures.ObjectLostError,  # the reply was on a node that is gone
)


def reason_of(error: Exception) -> str:
    """Return what Ray says about a failure, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def raise_cause(error: failures.RayTaskError) -> NoReturn:
    """Raise what a worker's code raised, without what Ray wraps around it."""
    raise error.cause if isinstance(error.cause, Exception) else error
