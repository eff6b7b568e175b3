"""What runs in a worker process."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from fedsim.errors import ConfigError, RunError, error_line, is_of_the_user
from fedsim.federation.engines.clients import Clients
from fedsim.federation.engines.packing import Buffer, Frozen, Packer, unpack
from fedsim.federation.engines.scratch import remove_leftovers


class Actor:
    """The clients of one worker process, answering packed messages.

    Parameters
    ----------
    scratch
        Folder for states that do not fit in memory; None for the system's temporary folder.
    """

    _clients: Clients

    def __init__(self, scratch: str | None) -> None:
        torch.set_num_threads(1)
        # What a killed worker leaves on disk is removed with Ray's own files, or by the next worker on this machine.
        tempfile.tempdir = scratch
        remove_leftovers(Path(tempfile.gettempdir()))

    def placed(self) -> None:
        """Return as soon as the actor has a process."""

    def start(self, make_app: Callable[..., ClientApp], count: int, cache_bytes: int, frozen: Frozen | None) -> int:
        """Build the app, and return the number of clients that it answers for at a time.

        Raises
        ------
        ConfigError
            If the user's code fails: what it raises may end a worker, or be more than pickle can take.
        """
        self._frozen = frozen  # whose memory the model uses
        try:
            app = make_app(frozen.tensors()) if frozen else make_app()
        except (ConfigError, RunError):
            raise
        except BaseException as error:
            if isinstance(error, Exception) and not is_of_the_user(error):
                raise
            raise ConfigError(f"a worker of Ray cannot build its clients: {error_line(error)}") from None
        self._clients = Clients(app, count, cache_bytes)
        return self._clients.cohort

    def answer(
        self, data: bytes, places: list[int], own: list[Buffer], common: list[Buffer]
    ) -> tuple[bytes, list[Buffer], float]:
        """Answer packed messages.

        Parameters
        ----------
        places
            Place of each buffer in ``common``; -1 for the next one of ``own``.

        Returns
        -------
        tuple
            Packed replies, and the seconds that they took.
        """
        began, rest = time.perf_counter(), iter(own)
        messages = unpack(data, [common[place] if place >= 0 else next(rest) for place in places])
        replies = Packer().pack(self._clients.answer_all(messages))
        return *replies, time.perf_counter() - began

    def save(self, folder: Path, clients: list[int], server_round: int) -> None:
        """Write the state of these clients."""
        self._clients.save(folder, clients, server_round)

    def load(self, folder: Path, rounds: dict[int, int]) -> None:
        """Load the state of these clients."""
        self._clients.load(folder, rounds)

    def end(self) -> None:
        """Remove what the clients have on disk."""
        del self._clients


def variables() -> dict[str, str]:
    """Return environment variables with which a worker process imports and reads data from where this one does."""
    places = {name: os.environ[name] for name in ("FEDSIM_DATA", "XDG_CACHE_HOME") if name in os.environ}
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **places}


@contextmanager
def inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, so that processes started meanwhile inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
