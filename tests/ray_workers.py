"""Workers of Ray that one engine hands to the next: each takes seconds of imports to start."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from fedsim.federation.engines import workers
from fedsim.federation.engines.workers import Workers

end = Workers.end  # which ends the processes


def hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines leave the actors that are idle when they end to those that start later."""
    left: list[Any] = []

    def remote(**needs: Any) -> Any:
        def make(kind: type) -> Any:
            started = ray.remote(**needs)(kind)
            if needs["num_gpus"]:  # of which each machine has its own
                return started
            return SimpleNamespace(remote=lambda scratch: left.pop() if left else started.remote(scratch))

        return make

    def leave(self: Workers) -> None:
        if self._needs["GPU"]:
            end(self)
            return
        idle = [worker for worker in self._alive if worker.ready and not worker.running]
        ray.get([worker.actor.end.remote() for worker in idle])
        left.extend(worker.actor for worker in idle)
        self._alive = [worker for worker in self._alive if worker not in idle]
        end(self)

    monkeypatch.setattr(workers, "ray", SimpleNamespace(**vars(ray) | {"remote": remote}))
    monkeypatch.setattr(Workers, "end", leave)
