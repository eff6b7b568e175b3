"""More machines for a Ray that runs here: each is a process, with resources and variables of its own."""

import time

import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster


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
