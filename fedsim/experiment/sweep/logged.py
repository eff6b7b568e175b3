"""What a run logs as a warning or worse, handed to whoever shows the progress of all runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedsim.experiment.sweep.processes import Emit


@dataclass(frozen=True)
class Logged:
    """A warning or an error that a run logged."""

    level: int
    message: str


@contextmanager
def warnings_to(emit: Emit) -> Iterator[None]:
    """Hand what fedsim logs as a warning or worse to ``emit`` and to no one else."""
    logger, handler = logging.getLogger("fedsim"), _Handler(emit)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


class _Handler(logging.Handler):
    def __init__(self, emit: Emit) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit(Logged(record.levelno, record.getMessage()))
