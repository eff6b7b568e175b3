"""All clients in this process, one per thread: the reference that other engines are tested against."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim.engines.clients import Clients
from fedsim.engines.grid import RUN, Engine


class LocalEngine(Engine):
    """Runs each client in a thread of its own, as many at a time as there are workers.

    torch spends its time outside Python's lock, so two clients on two threads beat one client on both. Each uses
    one intra-op thread, so that no number depends on how many there are.
    """

    def __init__(self, make_app: Callable[[], ClientApp], clients: int, workers: int = 0) -> None:
        super().__init__(clients, workers)
        self._clients = Clients(make_app(), clients, RUN)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))

    def handle(self, messages: list[Message]) -> list[Message]:
        """Answer the messages, one client per thread."""
        return list(self._pool.map(self._clients.answer, messages))

    def save_clients(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write the state of these clients."""
        self._clients.save(folder, clients, server_round)

    def load_clients(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Read the state of these clients."""
        self._clients.load(folder, rounds)

    def close(self) -> None:
        """End the threads; clients that wait are dropped, those that run finish."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)
