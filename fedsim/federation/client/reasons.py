"""Why a client failed, in one line that its user can act on."""

import torch

from fedsim.errors import ClientError, ConfigError, RunError, error_line, text_of

CRASHED = "its worker crashed twice while running it"
LESS_MEMORY = "; fewer engine.workers, engine.cohort = 1 or a smaller local.batch_size need less memory"
NO_STATISTICS = (
    "; batch normalisation cannot train on a single example: take another local.batch_size, give each client more "
    "examples (partition.min_size), or use another normalisation"
)


def is_expected(error: BaseException) -> bool:
    """Return whether an error's message says enough without its traceback."""
    return isinstance(error, ClientError | ConfigError | RunError)


def reason_of(error: BaseException) -> str:
    """Return the message of an error and where it came from, with the remedy where there is a known one."""
    return str(error) if is_expected(error) else error_line(error) + _remedy(error)


def _remedy(error: BaseException) -> str:
    text = text_of(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return LESS_MEMORY
    return NO_STATISTICS if text.startswith("Expected more than 1 value per channel") else ""
