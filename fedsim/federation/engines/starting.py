"""How Ray starts and stops: on this machine, or by connecting to an existing cluster."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.node import Node

from fedsim.errors import ConfigError
from fedsim.federation.engines.actor import inherited, variables


def start(address: str | None, workers: int) -> str | None:
    """Connect to a cluster, or start Ray here and return the folder of its files.

    Raises
    ------
    ConfigError
        If there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, runtime_env={"env_vars": variables()}, **quiet)
        except (ValueError, ConnectionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"engine.address = {address!r}: Ray cannot be reached ({reason}); leave it out to start Ray here"
            ) from error
        return None
    # Ray's processes inherit the variables; with a runtime_env it would start every worker a second time.
    with inherited(variables()), _few_processes():
        context: Any = ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
    return context.address_info["session_dir"]


def stop(session: str | None) -> None:
    """End what `start` began, and remove the files of a Ray that was started here."""
    ray.shutdown()
    if session:
        shutil.rmtree(session, ignore_errors=True)
        # Ray would never set it again if it pointed nowhere.
        latest = Path(session).with_name("session_latest")
        if latest.is_symlink() and not latest.exists():
            latest.unlink(missing_ok=True)


@contextmanager
def _few_processes() -> Iterator[None]:
    """Start Ray without its dashboard, log monitor and autoscaler, which takes a quarter of the time.

    Ray has no setting for that; where it has changed, it starts them.
    """
    names = [name for name in ("start_api_server", "start_log_monitor", "start_monitor") if hasattr(Node, name)]
    before = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)
