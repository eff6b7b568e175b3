"""Whether a Ray cluster answers at an address: Ray itself would wait for minutes, and print what it tries meanwhile."""

from ray._private.grpc_utils import grpc, init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]  # of generated code
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from fedsim.shortening import one_line

ANSWER_SECONDS, LONGEST = 15.0, 160
CLIENT = "ray://"
REASONS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer in {ANSWER_SECONDS:g} s",
    grpc.StatusCode.UNIMPLEMENTED: "what answers there is not a Ray cluster",
    grpc.StatusCode.UNAUTHENTICATED: "the cluster requires its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
}


def check_answers(address: str) -> None:
    """Ask for the cluster at an address.

    Raises
    ------
    ConnectionError
        If none answers.
    ValueError
        If it is no address.
    """
    try:
        if address.startswith(CLIENT):
            with init_grpc_channel(address.removeprefix(CLIENT), GLOBAL_GRPC_OPTIONS) as channel:
                grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        else:
            with init_grpc_channel(canonicalize_bootstrap_address(address) or address, GLOBAL_GRPC_OPTIONS) as channel:
                NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=ANSWER_SECONDS)
    except grpc.FutureTimeoutError:
        raise ConnectionError(REASONS[grpc.StatusCode.DEADLINE_EXCEEDED]) from None
    except grpc.RpcError as error:
        raise ConnectionError(REASONS.get(error.code()) or one_line(error.details(), LONGEST)) from None
