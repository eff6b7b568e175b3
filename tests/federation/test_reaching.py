"""Addresses of Ray clusters at which nobody answers, or that are none."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.federation.engines import reaching, starting


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_never_answers_is_one_line(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("0.0.0.0", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError) as found:
            starting.connect(address)
    what = "no answer in 15 s"
    assert str(found.value) == (
        f"engine.address = '{address}': Ray cannot be reached ({what}); leave it out to start Ray here"
    )


@pytest.mark.parametrize(("host", "why"), [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "resolv")])
def test_an_address_where_nothing_listens_is_one_line_at_once(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"^engine.address = '{host}:1': Ray cannot be reached \(.*{why}") as found:
        starting.connect(f"{host}:1")
    assert len(str(found.value).splitlines()) == 1
    assert len(str(found.value)) < 300


def test_an_address_that_the_environment_names_is_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # as for `ray job submit`
    with pytest.raises(
        ConfigError, match=r"^engine.address = 'auto' \(RAY_ADDRESS = 'http://127.0.0.1:8265'\): Ray can"
    ):
        starting.connect("auto")


@pytest.mark.slow
def test_a_sweep_without_its_cluster_is_one_line_and_no_folder(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    configs = [tiny(engine={"name": "ray", "address": "127.0.0.1:1"}, seed=seed) for seed in (0, 1)]
    with pytest.raises(ConfigError, match=r"^engine.address = '127.0.0.1:1': Ray cannot be reached"):
        run_all(name_runs(configs, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["auto", "10.0.0.5:6379", "[::1]:6379", "ray://node-1.cluster:10001"])
def test_an_address_may_be(address: str, tiny: Callable[..., Config]) -> None:
    assert tiny(engine__address=address).engine.address == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "local",
        "node",
        "node:",
        ":6379",
        "node:0",
        "node:65536",
        "http://node:6379",
        "a b:1",
        "node:1\n",
        "node:\uff11",
    ],
)
def test_an_address_must_be_one_of_a_cluster(address: str, tiny: Callable[..., Config]) -> None:
    with pytest.raises(
        ConfigError, match=r"engine.address = .* must be \"auto\" or the host and port of a Ray cluster"
    ):
        tiny(engine__address=address)
