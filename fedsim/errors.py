"""The errors that the command line prints as one line, and how those of the system are told from mistakes in code."""

import os
import traceback
from pathlib import Path
from textwrap import shorten

LONGEST = 400  # letters of a message that is not fedsim's
HOME = Path(__file__).resolve().parent.parent
OURS = tuple(f"{HOME / name}{os.sep}" for name in ("fedsim", "strategies", "partitions"))
LIBRARY, INSTALLED = f"{Path(os.__file__).parent}{os.sep}", {"site-packages", "dist-packages"}


class ConfigError(ValueError):
    """A setting, file or name that the user can correct."""


class RunError(RuntimeError):
    """A run that could not be completed, for a reason outside its code; the same command resumes it."""


def is_of_the_system(error: OSError) -> bool:
    """Tell whether a file or the disk is the reason: libraries raise OSError for other reasons too, without a number.

    jinja2's TemplateNotFound is one, for example.
    """
    return error.errno is not None


def error_line(error: BaseException) -> str:
    """Return an error in one line: its message, its type, and the file and line of the user's code that it is from.

    Long messages are cut.
    """
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{shorten(message, LONGEST, placeholder=' ...') or 'no reason given'} ({error_kind(error)})"


def error_kind(error: BaseException) -> str:
    """Return what errors of one cause have in common, such as ``ValueError in model.py, line 12``.

    The place is the innermost line of the user's code; if there is none, of fedsim's; if there is none, of any.
    """
    file, line = _place(error)
    return f"{type(error).__name__} in {Path(file).name}, line {line}" if file else type(error).__name__


def is_of_the_user(error: BaseException) -> bool:
    """Tell whether an error passed through code that is neither fedsim's nor a library's."""
    return (isinstance(error, SyntaxError) and bool(error.filename)) or any(_is_the_users(at) for at, _ in _path(error))


def _place(error: BaseException) -> tuple[str, int]:
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 0
    path = _path(error)[::-1]
    for is_wanted in (_is_the_users, _is_ours):
        if found := next((place for place in path if is_wanted(place[0])), None):
            return found
    return path[0] if path else ("", 0)


def _path(error: BaseException) -> list[tuple[str, int]]:
    """Return the file and the line of each call that an error came through, the innermost last."""
    return [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]


def _is_ours(file: str) -> bool:
    return file.startswith(OURS)


def _is_the_users(file: str) -> bool:
    if file.startswith("<"):
        return file.startswith(("<stdin>", "<string>", "<ipython"))  # others are imports and generated code
    return not file.startswith((*OURS, LIBRARY)) and INSTALLED.isdisjoint(Path(file).parts)
