"""What a run logs as a warning or worse, handed to whoever shows the progress of all runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedsim.experiment.sweep.processes import Emit


@dataclass(frozen=True)
class Logged:
    """What a run logged."""

    level: int
    message: str


@contextmanager
def warnings_to(emit: Emit, level: int = logging.WARNING) -> Iterator[None]:
    """Hand what fedsim logs as a warning or worse, or from another level, to ``emit`` and to no one else."""
    logger, handler = logging.getLogger("fedsim"), _Handler(emit, level)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


class _Handler(logging.Handler):
    def __init__(self, emit: Emit, level: int) -> None:
        super().__init__(level)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit(Logged(record.levelno, record.getMessage()))
