"""The errors that the command line prints as one line, and how those of the system are told from mistakes in code."""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.shortening import LINE, one_line

LONGEST = LINE // 2  # letters of a message that is not fedsim's: there is room for where it happened and what helps
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TOO_LARGE = re.compile(r"(?:can't|not enough) (?:allocate )?memory: you tried to allocate (\d+) bytes")
HOME = Path(__file__).resolve().parent.parent
OURS = tuple(f"{HOME / name}{os.sep}" for name in ("fedsim", "strategies", "partitions"))
LIBRARY, INSTALLED = f"{Path(os.__file__).parent}{os.sep}", {"site-packages", "dist-packages"}


class ConfigError(ValueError):
    """A setting, file or name that the user can correct."""


class RunError(RuntimeError):
    """A run that could not be completed, for a reason outside its code; the same command resumes it."""


class DivergedError(RunError):
    """A run in which no model is finite any more."""


class ClientError(ValueError):
    """Why a client is left out, where that is no mistake in any code."""


def is_of_the_system(error: OSError) -> bool:
    """Tell whether a file or the disk is the reason: libraries raise OSError for other reasons too, without a number.

    jinja2's TemplateNotFound is one, for example.
    """
    return error.errno is not None


def system_line(error: OSError) -> str:
    """Return what the system says of a file, such as ``runs/a: No space left on device``, and what helps."""
    if error.strerror is None:  # of a library
        return str(error)
    names = " -> ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None)
    text = f"{names}: {error.strerror}" if names else error.strerror
    return f"{text}; free some space, or choose another folder" if error.errno in FULL else text


@contextmanager
def about_file(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an error of the system name a file, or a folder, if it names none, as in writing, or only a temporary one."""
    try:
        yield
    except OSError as error:
        if is_of_the_system(error) and error.filename in (None, temporary and str(temporary)):
            error.filename = str(path)
            del error.filename2
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is that memory was not enough, on the CPU or another device."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and bool(TOO_LARGE.search(str(error))))
    )


def error_line(error: BaseException) -> str:
    """Return an error in one line, such as ``KeyError: 'label' (mine.py, line 7)``; long messages are cut.

    The place is the innermost line of the user's code; if there is none, of fedsim's; if there is none, of any.
    """
    kind = type(error).__name__ + (f": {message}" if (message := message_of(error)) else "")
    file, line = _place(error)
    return f"{kind} ({Path(file).name}, line {line})" if file else kind


def message_of(error: BaseException) -> str:
    """Return an error's message in one line; a long one is cut in the middle."""
    text = text_of(error)
    if match := TOO_LARGE.search(text):
        return f"not enough memory for {int(match[1]):,} bytes at once"
    return one_line(text, LONGEST)


def text_of(error: BaseException) -> str:
    """Return an error's message; its class may be the user's, and fail at that too."""
    try:
        return str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception as another:
        return f"its message cannot be read ({type(another).__name__})"


def first_line(error: BaseException) -> str:
    """Return the type of a library's error and the first line of its message; what follows is advice, or a trace."""
    text = one_line(str(error).partition("\n")[0], LONGEST)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_of_the_user(error: BaseException) -> bool:
    """Tell whether an error passed through code that is neither fedsim's nor a library's."""
    return (isinstance(error, SyntaxError) and bool(error.filename)) or any(is_the_users(at) for at, _ in _path(error))


@contextmanager
def in_code_of_the_user(where: str, *, whole: bool = False) -> Iterator[None]:
    """Turn an error of the user's code into a `ConfigError`.

    Parameters
    ----------
    where
        What the message begins with.
    whole
        Whether every error is the user's, also one that a library raises when it is called by the user's choice.

    Raises
    ------
    ConfigError
        If the user's code raises anything else, also what is no `Exception`, such as `SystemExit`.
    """
    try:
        yield
    except (ConfigError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not whole and not is_of_the_user(error):
            raise
        raise ConfigError(f"{where}: {error_line(error)}") from error


def is_the_users(file: str) -> bool:
    """Tell whether a source file is neither fedsim's nor a library's; one that is installed in place is the user's."""
    if file.startswith("<"):
        return file.startswith(("<stdin>", "<string>", "<ipython"))  # others are imports and generated code
    return not file.startswith((*OURS, LIBRARY)) and INSTALLED.isdisjoint(Path(file).parts)


def _place(error: BaseException) -> tuple[str, int]:
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 0
    path = _path(error)[::-1]
    for is_wanted in (is_the_users, _is_ours):
        if found := next((place for place in path if is_wanted(place[0])), None):
            return found
    return path[0] if path else ("", 0)


def _path(error: BaseException) -> list[tuple[str, int]]:
    """Return the file and the line of each call that an error came through, the innermost last."""
    return [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]


def _is_ours(file: str) -> bool:
    return file.startswith(OURS)
