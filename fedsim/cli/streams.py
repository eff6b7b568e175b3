"""Standard streams whose reader may leave, or that may be full or closed: printing never stops the work."""

import errno
import io
import os
import sys
from typing import Any

GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # the reader of a pipe or a socket, or the terminal, has left


class Outlet(io.FileIO):
    """A file descriptor that is written as long as it can be; what comes then is dropped.

    Attributes
    ----------
    failure
        Why nothing is written any more.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them after an error."""
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody reads what is written."""
        return self.failure is not None and self.failure.errno in GONE


def prepare_streams() -> None:
    """Let every text be printed, whatever the locale, into streams that may end before the work does."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the process that started this one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 (until the end)
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _outlet_of(stream))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def is_read() -> bool:
    """Return whether what is printed to stdout may still be read."""
    outlet = _outlet(sys.stdout)
    return outlet is None or not outlet.is_abandoned


def end_streams() -> None:
    """Write what is left to stdout.

    Raises
    ------
    OSError
        If it could not be written, unless its reader has left, who has read enough.
    """
    sys.stdout.flush()
    outlet = _outlet(sys.stdout)
    if outlet is not None and outlet.failure is not None and not outlet.is_abandoned:
        raise outlet.failure


def _outlet(stream: object) -> Outlet | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Outlet) else None


def _outlet_of(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a stream on the same file descriptor."""
    if _outlet(stream) is not None:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Outlet(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
