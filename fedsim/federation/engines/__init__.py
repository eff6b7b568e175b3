"""Where the clients run: implementations of Flower's Grid. ``ray`` is imported here alone, and only when it is used."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp

from fedsim.config import EngineConfig
from fedsim.federation.engines.grid import Engine
from fedsim.federation.engines.scratch import remove_leftovers

# Both are read when ray is imported. Without the first, its workers yield to every other process.
os.environ.setdefault("RAY_worker_niceness", "0")
# A worker without a share of a GPU may still use it, which will be the default of Ray.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def make_engine(settings: EngineConfig, make_app: Callable[..., ClientApp], clients: int, shared: Any = None) -> Engine:
    """Start the engine that ``[engine]`` names.

    Parameters
    ----------
    make_app
        Builds the clients' app, here or in a worker; it must be picklable for ``ray``.
    shared
        What ``make_app`` takes in a worker, if anything; the workers on a machine share its tensors and arrays.
    """
    remove_leftovers(Path(tempfile.gettempdir()))
    if settings.name == "ray":
        from fedsim.federation.engines.ray import RayEngine

        return RayEngine(
            make_app,
            clients,
            settings.workers,
            settings.address,
            settings.gpus_per_worker,
            settings.deadline,
            settings.cache_bytes,
            shared,
        )
    from fedsim.federation.engines.local import LocalEngine

    return LocalEngine(make_app, clients, settings.workers, settings.deadline, settings.cache_bytes)


def check_reachable(settings: EngineConfig) -> None:
    """Check that a Ray cluster answers where ``[engine]`` names one.

    Raises
    ------
    ConfigError
        If none does.
    """
    if settings.name == "ray" and settings.address:
        from fedsim.federation.engines.starting import check_cluster

        check_cluster(settings.address)


def room_on_cluster(settings: EngineConfig) -> int:
    """Return how many workers there is room for on the cluster that ``[engine] address`` names.

    Raises
    ------
    ConfigError
        If it cannot be reached.
    """
    from fedsim.federation.engines.starting import room_at

    return room_at(settings.address or "auto", {"CPU": 1.0, "GPU": settings.gpus_per_worker})
