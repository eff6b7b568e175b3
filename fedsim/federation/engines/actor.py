"""What runs in a worker process."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from flwr.clientapp import ClientApp

from fedsim.errors import ConfigError, RunError, error_line, is_of_the_user
from fedsim.federation.engines.clients import Clients
from fedsim.federation.engines.packing import Buffer, Packer, Shared, unpack
from fedsim.federation.engines.scratch import remove_leftovers
from fedsim.federation.engines.states import Encoded
from fedsim.results.environment import versions


class Actor:
    """The clients of one worker process, answering packed messages.

    Parameters
    ----------
    scratch
        Folder for states that do not fit in memory, of a Ray on one machine; None on a cluster, for the system's
        temporary folder.
    """

    _clients: Clients

    def __init__(self, scratch: str | None) -> None:
        torch.set_num_threads(1)
        # What a killed worker leaves on disk is removed with Ray's own files, or by the next worker on this machine.
        tempfile.tempdir = scratch
        self._is_alone = scratch is not None
        remove_leftovers(Path(tempfile.gettempdir()))

    def placed(self) -> tuple[str, str, dict[str, Any]]:
        """Return Ray's name for the machine that the actor is on, its address, and the versions installed there."""
        return ray.get_runtime_context().get_node_id(), _address(), versions()

    def start(
        self,
        make_app: Callable[..., ClientApp],
        count: int,
        cache_bytes: int,
        places: Mapping[str, str],
        shared: Shared | None,
    ) -> int:
        """Build the app, and return the number of clients that it answers for at a time.

        Parameters
        ----------
        places
            Variables that say where to look for files, unless this machine has its own.

        Raises
        ------
        ConfigError
            If the user's code fails: what it raises may end a worker, or be more than pickle can take.
        """
        for name, value in places.items():
            os.environ.setdefault(name, value)
        self._shared = shared  # whose memory the app uses
        try:
            app = make_app(shared.value()) if shared else make_app()
        except RunError:
            raise
        except ConfigError as error:
            if self._is_alone:
                raise
            raise ConfigError(f"the worker on {_address()}: {error}") from None
        except BaseException as error:
            if isinstance(error, Exception) and not is_of_the_user(error):
                raise
            where = "" if self._is_alone else f" on {_address()}"
            raise ConfigError(f"a worker of Ray{where} cannot build its clients: {error_line(error)}") from None
        self._clients = Clients(app, count, cache_bytes)
        return self._clients.cohort

    def answer(
        self, data: bytes, places: list[int], own: list[Buffer], states: Mapping[int, Encoded], common: list[Buffer]
    ) -> tuple[bytes, list[Buffer], float]:
        """Answer packed messages.

        Parameters
        ----------
        states
            States that clients have from elsewhere.
        places
            Place of each buffer in ``common``; -1 for the next one of ``own``.

        Returns
        -------
        tuple
            Packed replies, and the seconds that they took.
        """
        began, rest = time.perf_counter(), iter(own)
        self._clients.replace(states)
        messages = unpack(data, [common[place] if place >= 0 else next(rest) for place in places])
        replies = Packer().pack(self._clients.answer_all(messages))
        return *replies, time.perf_counter() - began

    def save(self, folder: Path, clients: list[int], server_round: int) -> None:
        """Write the state of these clients."""
        self._clients.save(folder, clients, server_round)

    def encoded(self, clients: Iterable[int]) -> dict[int, Buffer]:
        """Return the states of those clients that have one, as they are saved."""
        return {k: np.frombuffer(state, np.uint8) for k, state in self._clients.encoded(clients).items()}

    def hand_over(self, clients: Iterable[int], wanted: Iterable[int]) -> dict[int, Buffer]:
        """Forget the states of clients that get another worker; return those of them that are wanted."""
        states = self.encoded(wanted)
        self._clients.discard(clients)
        return states

    def end(self) -> None:
        """Remove what the clients have on disk."""
        del self._clients


def _address() -> str:
    return ray.util.get_node_ip_address()


def variables() -> dict[str, str]:
    """Return environment variables with which a worker process imports from where this one does."""
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def places() -> dict[str, str]:
    """Return environment variables by which this process finds the files of data."""
    return {name: os.environ[name] for name in ("FEDSIM_DATA", "XDG_CACHE_HOME") if name in os.environ}


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
