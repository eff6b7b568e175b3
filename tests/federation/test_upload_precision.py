"""With ``upload_precision = "bfloat16"`` clients send half the bytes of their layers; all else stays float32."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

from fedsim.config import Config, naming
from fedsim.config.making import make_strategy
from fedsim.errors import ClientError
from fedsim.experiment.planning.traffic import planned_traffic
from fedsim.federation.client.app import _checked
from fedsim.federation.federation import federation_of
from fedsim.models.averaging import weighted_mean
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy.messages import Instructions, narrowed
from fedsim.training import Finished, LocalPlan
from strategies.fedavg import FedAvg
from tests.conftest import run_files, run_until
from tests.strategy.test_strategy import Nodes, model_with_buffers, random_updates, reply

BFLOAT16 = {"name": "fedper", "upload_precision": "bfloat16"}


@pytest.mark.parametrize("in_order", [False, True])
def test_the_server_averages_rounded_uploads_in_its_own_precision(in_order: bool) -> None:
    model = model_with_buffers()
    updates = random_updates(model, 3)
    strategy = FedAvg(model, upload_precision="bfloat16")
    sent = list(strategy.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), Nodes(3, 1)))
    asked = Instructions.read(sent[0].content["config"])
    assert asked.in_bfloat16
    uploads = [narrowed({key: update[key] for key in asked.upload}) for update in updates]
    replies = (reply(sent[k], uploads[k], 1.0 + k) for k in range(3))
    received = strategy.receive(1, replies, in_order=in_order)
    assert received.left_out == {}
    strategy.step(1, received)
    rounded = [{key: value.float() for key, value in upload.items() if value.is_floating_point()} for upload in uploads]
    for key, value in weighted_mean(rounded, [1.0, 2.0, 3.0]).items():
        assert strategy.global_model[key].dtype == torch.float32
        assert torch.equal(strategy.global_model[key], value)
        assert not torch.equal(value, value.bfloat16().float())


def test_bfloat16_that_was_not_asked_for_is_refused() -> None:
    model = model_with_buffers()
    strategy = FedAvg(model)
    sent = list(strategy.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), Nodes(1, 1)))
    asked = Instructions.read(sent[0].content["config"])
    update = narrowed({key: random_updates(model, 1)[0][key] for key in asked.upload})
    assert "bfloat16" in strategy.receive(1, [reply(sent[0], update)]).left_out[0]


@pytest.mark.parametrize("precision", ["own", "bfloat16"])
def test_entries_that_were_not_asked_for_are_refused_in_any_precision(precision: str) -> None:
    model = model_with_buffers()
    strategy = FedAvg(model, upload_precision=precision)
    sent = list(strategy.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), Nodes(1, 1)))
    asked = Instructions.read(sent[0].content["config"])
    update = {key: random_updates(model, 1)[0][key] for key in asked.upload}
    received = strategy.receive(1, [reply(sent[0], update | {"x": torch.ones(2)})])
    assert received.left_out == {0: f"it sent the entries {sorted([*update, 'x'])}, not {sorted(update)}"}


def test_a_client_does_not_send_what_rounding_makes_infinite(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny())
    key = next(iter(federation.initial))
    finished = Finished(federation.initial | {key: torch.full_like(federation.initial[key], 3.4e38)})
    asked = Instructions(1, (key,), (), LocalPlan())
    _checked(federation, asked, finished)
    with pytest.raises(ClientError, match=r"^its update is not finite"):
        _checked(federation, replace(asked, in_bfloat16=True), finished)


def test_a_run_sends_half_the_bytes_and_as_many_as_planned(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    up, down = {}, {}
    for precision in ("own", "bfloat16"):
        config = tiny(strategy={"name": "fedper", "upload_precision": precision})
        rows = read_rows(play(config, precision).communication)
        up[precision], down[precision] = (int(rows[way].sum()) for way in ("up", "down"))
        federation = federation_of(config)
        planned = planned_traffic(federation, make_strategy(config, federation.model()))
        assert (planned.up, planned.down) == (up[precision], down[precision])
    assert 2 * up["bfloat16"] == up["own"] > 0
    assert down["bfloat16"] == down["own"]
    assert naming.run_name(tiny(strategy={"name": "fedper"})) == naming.run_name(
        tiny(strategy={"name": "fedper", "upload_precision": "own"})
    )


def test_a_stopped_run_with_stale_and_exploding_replies_resumes_byte_for_byte(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(rounds=4, clients=4, strategy=BFLOAT16, faults={"stale": 0.3, "explode": 0.2, "nan": 0.1}, seed=3)
    whole = play(config, "whole")
    kinds = {row["kind"] for row in read_rows(whole.faults).to_dict("records")}
    assert {"stale", "explode", "nan"} <= kinds
    run_until(config, RunFolder(whole.path.parent / "stopped"), 2)
    assert run_files(play(config, "stopped")) == run_files(whole)


@pytest.mark.ray
def test_ray_gives_the_bytes_of_local(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    local, ray = (play(tiny(strategy=BFLOAT16, engine={"name": name, "workers": 2}), name) for name in ("local", "ray"))
    assert run_files(local) == run_files(ray)
