"""How Ray starts and stops: on this machine, or by connecting to an existing cluster."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import utils
from ray.exceptions import RayError

from fedsim.errors import ConfigError, RunError
from fedsim.federation.engines.actor import inherited, variables
from fedsim.federation.engines.failing import reason_of
from fedsim.federation.engines.isolation import LOOPBACK, check_loopback, forget_token, isolated
from fedsim.federation.engines.processes import few_processes
from fedsim.federation.engines.reaching import Needs, check_answers, machines_at, room_for
from fedsim.federation.engines.scratch import Scratch, remove_leftovers
from fedsim.shortening import one_line

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
# A socket's path has up to 107 letters, or 103 on macOS, of which Ray needs all but these below our folder.
INNER = "r"
OTHER_VERSIONS, LONGEST_VERSIONS = "Version mismatch", 300  # how Ray begins its words for it, and letters of them
LONGEST_PLACE = 103 - len("/fedsim-ray-12345678/r/session_2026-01-31_23-59-59_999999_1234567/sockets/plasma_store")


def check_cluster(address: str) -> None:
    """Check that a cluster answers.

    Raises
    ------
    ConfigError
        If there is none at the address, or this machine is not part of it.
    """
    with _reaching(address):
        check_answers(address)


def connect(address: str) -> None:
    """Connect to a cluster.

    Raises
    ------
    ConfigError
        If there is none at the address.
    """
    check_cluster(address)
    with _reaching(address), _signals_kept():
        ray.init(address=address, runtime_env={"env_vars": variables()}, **QUIET)


def room_at(address: str, needs: Needs) -> int:
    """Return how many workers there is room for on the cluster at an address.

    Raises
    ------
    ConfigError
        If there is none.
    """
    with _reaching(address):
        return room_for(needs, machines_at(address))


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, ConnectionError, RuntimeError, RayError) as error:
        text = str(error).strip()
        if text.startswith(OTHER_VERSIONS):
            raise ConfigError(
                f"engine.address = {address!r}: {one_line(' '.join(text.split()), LONGEST_VERSIONS)}; install the same "
                "versions of Ray and Python on all machines"
            ) from error
        reason = text.partition("\n")[0]
        found = f" (RAY_ADDRESS = {there!r})" if address == "auto" and (there := os.environ.get("RAY_ADDRESS")) else ""
        raise ConfigError(
            f"engine.address = {address!r}{found}: Ray cannot be reached ({reason}); leave it out to start Ray here"
        ) from error


def start(workers: int) -> Scratch:
    """Start Ray for this run alone, and return the folder of its files.

    Raises
    ------
    RunError
        If Ray cannot be started.
    """
    check_loopback()
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    place = place if len(str(place)) <= LONGEST_PLACE else Path("/tmp")
    remove_leftovers(place)
    scratch = Scratch("ray", place)
    try:
        # Ray's processes inherit the variables; with a runtime_env it would start every worker a second time.
        with inherited(variables()), isolated(), few_processes(), _signals_kept():
            context: Any = ray.init(
                "local",
                num_cpus=workers,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(scratch.path / INNER),  # to which Ray gives all rights to all users
                **QUIET,
            )
        if context.address_info["node_ip_address"] != LOOPBACK:
            raise RunError(
                f"Ray {ray.__version__} would accept connections from other machines; use engine.name = 'local'"
            )
    except RuntimeError as error:
        stop(scratch)
        raise RunError(f"Ray cannot be started ({reason_of(error)}); engine.name = 'local' needs none") from error
    except BaseException:
        stop(scratch)
        raise
    return scratch


def stop(scratch: Scratch | None) -> None:
    """End what `start` or `connect` began, and remove the files of a Ray that was started here."""
    ray.shutdown()
    if scratch:
        forget_token()
        scratch.remove()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what this process does when it is told to end, which Ray would change."""
    before, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
