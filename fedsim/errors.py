"""The two errors that the command line prints as one line, without a traceback."""


class ConfigError(ValueError):
    """A setting, file or name that the user can correct."""


class RunError(RuntimeError):
    """A run that could not go on, for a reason outside its code; the same command continues it."""
