"""What a Ray cluster at an address says of itself: Ray would wait for minutes, and print what it tries meanwhile."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ray._private.grpc_utils import grpc, init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address, find_node_ids
from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # type: ignore[attr-defined]  # of generated code
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from fedsim.shortening import one_line

ANSWER_SECONDS, LONGEST = 15.0, 160
CLIENT = "ray://"
Needs = dict[str, float]  # of each worker, by the name of Ray's resource
Answer = TypeVar("Answer")
REASONS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer in {ANSWER_SECONDS:g} s",
    grpc.StatusCode.UNIMPLEMENTED: "what answers there is not a Ray cluster",
    grpc.StatusCode.UNAUTHENTICATED: "the cluster requires its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
}


def check_answers(address: str) -> None:
    """Ask for the cluster at an address, and whether this machine is one of it: Ray would look for that for a minute.

    Raises
    ------
    ConnectionError
        If none answers, or no node of it is here.
    ValueError
        If it is no address.
    """
    if address.startswith(CLIENT):
        _ask(address.removeprefix(CLIENT), lambda channel: grpc.channel_ready_future(channel).result(ANSWER_SECONDS))
    elif not {node.node_id.hex() for node in _alive_at(address)} & find_node_ids():
        raise ConnectionError(
            "this machine is not part of that cluster; run `ray start --address=...` here, or fedsim on one that is"
        )


def machines_at(address: str) -> list[Mapping[str, float]]:
    """Return the resources of each machine of the cluster at an address.

    Raises
    ------
    ConnectionError
        If none answers.
    ValueError
        If it is no address, or one of Ray's client, which does not tell.
    """
    if address.startswith(CLIENT):
        raise ValueError(f"{CLIENT} does not tell how large the cluster is; set engine.workers")
    return [dict(node.resources_total) for node in _alive_at(address)]


def room_for(needs: Needs, machines: Iterable[Mapping[str, float]]) -> int:
    """Return how many workers there is room for on some machines."""
    return sum(min(int(has.get(name, 0) / need + 1e-6) for name, need in needs.items() if need) for has in machines)


def _alive_at(address: str) -> list[Any]:
    request = GetAllNodeInfoRequest()
    reply = _ask(
        address, lambda channel: NodeInfoGcsServiceStub(channel).GetAllNodeInfo(request, timeout=ANSWER_SECONDS)
    )
    return [node for node in reply.node_info_list if not node.state]  # 0 is alive


def _ask(address: str, ask: Callable[[Any], Answer]) -> Answer:
    try:
        with init_grpc_channel(canonicalize_bootstrap_address(address) or address, GLOBAL_GRPC_OPTIONS) as channel:
            return ask(channel)
    except grpc.FutureTimeoutError:
        raise ConnectionError(REASONS[grpc.StatusCode.DEADLINE_EXCEEDED]) from None
    except grpc.RpcError as error:
        raise ConnectionError(REASONS.get(error.code()) or one_line(error.details(), LONGEST)) from None
