"""An update that the model cannot hold is left out with its reason, whatever the strategy makes of the others."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import Message

from fedsim.config import Config
from fedsim.errors import DivergedError
from fedsim.federation.engines.local import LocalEngine
from fedsim.models.params import Params
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import messages

Spoil = Callable[[dict[int, Callable[[Params], Params]], str], None]
PATHS: dict[str, dict[str, Any]] = {
    "average": {"strategy": {"name": "full"}, "barriers": {"every": 0}},
    "measured": {"strategy": {"name": "layer_set", "shared": "head"}, "barriers": {"every": 1, "examples": 20}},
    "moments": {"strategy": {"name": "fedadam"}},
    "gate": {"strategy": {"name": "barrier_gated"}},
    "sets": {"strategy": {"name": "scaffold"}},
    "Flower's": {"strategy": {"name": "flwr:FedMedian"}},
    "cohort": {"strategy": {"name": "full"}, "engine": {"cohort": 2, "workers": 1}},
}


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Change what some clients send, by a function for each, in one record of their replies."""

    def patch(changes: dict[int, Callable[[Params], Params]], record: str) -> None:
        handle = LocalEngine.handle

        def changed(engine: LocalEngine, sent: list[Message]) -> Iterator[Message]:
            for reply in handle(engine, sent):
                client = reply.metadata.src_node_id
                if client in changes and (arrays := messages.arrays_of(reply.content, record)):
                    reply.content[record] = messages.encode(changes[client](messages.decode(arrays)))
                yield reply

        monkeypatch.setattr(LocalEngine, "handle", changed)

    return patch


def of_type(dtype: torch.dtype) -> Callable[[Params], Params]:
    return lambda params: {key: value.to(dtype) for key, value in params.items()}


def reasons(folder: RunFolder) -> dict[int, str]:
    faults = read_rows(folder.faults)
    return dict(zip(faults["client"], faults["reason"], strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_updates_of_other_types_and_sizes_are_left_out_in_every_path(
    path: str, tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Spoil
) -> None:
    changes = dict(enumerate(map(of_type, (torch.float64, torch.complex64, torch.int64))))
    spoil({**changes, 3: lambda params: {key: 1e30 * value for key, value in params.items()}}, messages.ARRAYS)
    config = tiny(rounds=1, clients=6, **PATHS[path])
    strategy = config.strategy.model_copy(update={"max_update_norm": 100.0})
    found = reasons(play(config.model_copy(update={"strategy": strategy})))
    assert found.keys() == {0, 1, 2, 3}
    for client, name in enumerate(("float64", "complex64", "int64")):
        assert f"has the type {name}, not float32" in found[client]
    assert found[3].startswith("its update is larger than max_update_norm; ")


def test_moments_that_overflow_end_the_run_instead_of_stopping_the_model(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Spoil
) -> None:
    spoil({1: lambda params: {key: 1e30 * value for key, value in params.items()}}, messages.ARRAYS)
    with pytest.raises(DivergedError, match=r"^round 1: flwr:FedAdam remembers 'v_t/dict/fc1.weight' with values that"):
        play(tiny(strategy={"name": "flwr:FedAdam"}, barriers={"every": 0}))
    play(tiny(strategy={"name": "fedadam"}, barriers={"every": 0}), "float64")  # whose moments do not overflow


def test_a_probe_of_another_type_is_not_measured_and_one_client_alone_fails(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Spoil
) -> None:
    spoil({1: of_type(torch.complex64), 2: lambda params: params | {"x": torch.ones(1)}}, messages.PROBE)
    config = tiny(rounds=1, strategy={"name": "layer_set", "shared": "head"}, barriers={"every": 1, "examples": 20})
    found = reasons(play(config))
    assert found == {
        1: "fc1.weight has the type complex64, not float32",
        2: "it sent the entry x of its own model, which is no entry of the model",
    }


def test_a_control_variate_of_another_type_is_left_out(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], spoil: Spoil
) -> None:
    spoil({2: of_type(torch.complex64)}, "control_change")
    [reason] = reasons(play(tiny(rounds=1, strategy={"name": "scaffold"}))).values()
    assert "type complex64; most clients' has (12, 64) and float32" in reason
