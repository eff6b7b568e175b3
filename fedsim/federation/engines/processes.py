"""Which processes a Ray that is started here consists of: only those that a run needs."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private import services
from ray._private.node import Node
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._raylet import persist_port  # type: ignore[attr-defined]  # of compiled code

NOT_STARTED = ("start_api_server", "start_log_monitor", "start_monitor")
AGENTS = ("dashboard_agent", "runtime_env_agent")
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
STAND_IN = subprocess.list2cmdline([sys.executable, "-I", "-S", str(Path(__file__).with_name("stand_in.py"))])


@contextmanager
def few_processes() -> Iterator[None]:
    """Start Ray without its dashboard, log monitor, autoscaler and agents.

    The agents report to the dashboard and install packages that a ``runtime_env`` names; each imports for more than
    half a second, for which a machine waits. Ray has no setting for any of this.
    """
    before = {name: getattr(Node, name) for name in NOT_STARTED}
    start = services.start_ray_process

    def started(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == PROCESS_TYPE_RAYLET:
            command = _without_agents(command)
        return start(command, process_type, *args, **kwargs)

    for name in NOT_STARTED:
        setattr(Node, name, lambda *_, **__: None)
    services.start_ray_process = started
    try:
        yield
    finally:
        services.start_ray_process = start
        for name, method in before.items():
            setattr(Node, name, method)


def _without_agents(command: list[str]) -> list[str]:
    """Return the command that starts a machine with another process in place of each agent."""
    given = dict(each[2:].split("=", 1) for each in command if each.startswith("--") and "=" in each)
    for port in PORTS:  # at which it would wait for them; Ray's sign for none
        persist_port(given["session_dir"], given["node_id"], port, -1)
    instead = {f"--{agent}_command": STAND_IN for agent in AGENTS}
    names = [each.partition("=")[0] for each in command]
    return [f"{name}={instead[name]}" if name in instead else each for name, each in zip(names, command, strict=True)]
