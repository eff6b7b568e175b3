"""How a Ray that is started here keeps to this machine, and answers nobody but this run."""

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # of compiled code

from fedsim.errors import RunError
from fedsim.federation.engines.actor import inherited

LOOPBACK = "127.0.0.1"
MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


@contextmanager
def isolated() -> Iterator[None]:
    """Let Ray start at the address `LOOPBACK`, with a new token without which none of its processes answers.

    Only at that address do its processes listen to this machine alone, and Ray would put another one in its place. The
    token is in their environment, which only their user can read. A mode that the user has chosen stands.
    """
    replaced, services.resolve_ip_for_localhost = services.resolve_ip_for_localhost, lambda host: host
    try:
        if MODE in os.environ:
            yield
        else:
            with inherited({MODE: "token", TOKEN: secrets.token_hex(32)}):
                _set_mode("token")
                yield
    finally:
        services.resolve_ip_for_localhost = replaced


def check_loopback() -> None:
    """Refuse to start where Ray would try to reach its own processes for minutes.

    Raises
    ------
    RunError
        If this machine cannot be reached at `LOOPBACK`, as in a container without a loopback interface.
    """
    try:
        with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            pass
    except OSError as error:
        raise RunError(
            f"Ray needs the address {LOOPBACK}, which cannot be reached ({error.strerror or error}); "
            "start the loopback interface, or use engine.name = 'local'"
        ) from error


def forget_token() -> None:
    """Let this process use Ray as before, when the Ray that was started here has ended."""
    if MODE not in os.environ:
        _set_mode("disabled")


def _set_mode(mode: str) -> None:
    """Set what Ray reads when it is imported, and let it read its token when it needs one."""
    Config.initialize(json.dumps({"AUTH_MODE": mode}).encode())
    AuthenticationTokenLoader.instance().reset_cache()
