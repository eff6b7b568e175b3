"""The errors that the command line prints as one line, and how those of the system are told from mistakes in code."""


class ConfigError(ValueError):
    """A setting, file or name that the user can correct."""


class RunError(RuntimeError):
    """A run that could not be completed, for a reason outside its code; the same command resumes it."""


def is_of_the_system(error: OSError) -> bool:
    """Tell whether a file or the disk is the reason: libraries raise OSError for other reasons too, without a number.

    jinja2's TemplateNotFound is one, for example.
    """
    return error.errno is not None
