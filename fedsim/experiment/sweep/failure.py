"""Why a run failed, in one line that says what to do."""

import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from fedsim.config import Config
from fedsim.config.choices import custom_names
from fedsim.errors import (
    ConfigError,
    DivergedError,
    RunError,
    error_line,
    is_of_the_system,
    is_of_the_user,
    is_out_of_memory,
    message_of,
    system_line,
)

AGAIN = "rerun the same command to resume from the last completed round"


@dataclass(frozen=True)
class Failure:
    """Why a run failed, in one line.

    Parameters
    ----------
    diverged
        Whether it is that no model is finite any more.
    trace
        The traceback of an error that is neither the user's nor the machine's, else empty.
    """

    message: str
    wrong_config: bool = False
    diverged: bool = False
    trace: str = ""


def failure_of(error: BaseException, config: Config, log: Path) -> Failure:
    """Return what to say of an error that has just ended a run."""
    if isinstance(error, ConfigError):
        return Failure(str(error), wrong_config=True)
    if isinstance(error, RunError):
        return Failure(str(error), diverged=isinstance(error, DivergedError))
    # Any other error comes from a custom strategy, model or other part, most likely.
    if isinstance(error, OSError) and is_of_the_system(error) and not is_of_the_user(error):
        return Failure(f"{system_line(error)}; {AGAIN}")
    if is_out_of_memory(error) and not is_of_the_user(error):
        return Failure(f"{message_of(error)}; use a smaller model, batch or number of workers, and {AGAIN}")
    reason = f"{error_line(error)}; fix it and"
    if custom_names(config) or is_of_the_user(error):  # whose sources, once they are fixed, name another run
        return Failure(f"{reason} run the same command again; the traceback is in {log}")
    return Failure(f"{reason} {AGAIN}", trace=traceback.format_exc())


def cause_of_death(exit_code: int | None) -> str:
    """Return what to say of a run whose process ended before it did."""
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code}; {AGAIN}"
    name = signal.Signals(-exit_code).name
    return f"its process was killed by {name}; {AGAIN}, with a smaller --jobs if memory ran out"
