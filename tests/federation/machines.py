"""More machines for a Ray that runs here: each is a process, with resources and variables of its own."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.node import Node
from ray.cluster_utils import Cluster

# Ray waits 15 s for the ports of an agent that reports to its dashboard and takes seconds to import. No test has one.
AGENT = """
import os, sys, time
args = dict(each[2:].split("=", 1) for each in sys.argv if each.startswith("--") and "=" in each)
for name in ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"):
    path = os.path.join(args["session-dir"], f"{name}_{args['node-id']}")
    with open(path + ".part", "w") as file:
        file.write("1")
    os.replace(path + ".part", path)
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(1)
"""


class Machines:
    """Machines that join the Ray of this process, and leave it."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=False)
        self._cluster.head_node = ray._private.worker._global_node

    def join(self, **variables: str) -> Node:
        """Let a machine with two processors and one GPU join."""
        return self._cluster.add_node(num_cpus=2, num_gpus=1, env_vars=variables or None)

    def leave(self, node: Node) -> None:
        """Let a machine leave, as if it were switched off."""
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        while any(each["NodeID"] == node.node_id and each["Alive"] for each in ray.nodes()):
            time.sleep(0.05)


@contextmanager
def without_agents(folder: Path) -> Iterator[None]:
    """Start Ray's processes without the agents of its dashboard."""
    stub = folder / "agent.py"
    stub.write_text(AGENT)
    build = services._build_python_executable_command_memory_profileable

    def built(component: str, *args: Any, **kwargs: Any) -> Any:
        is_agent = component == ray_constants.PROCESS_TYPE_DASHBOARD_AGENT
        return [sys.executable, "-S", str(stub)] if is_agent else build(component, *args, **kwargs)

    services._build_python_executable_command_memory_profileable = built
    try:
        yield
    finally:
        services._build_python_executable_command_memory_profileable = build
