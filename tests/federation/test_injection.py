"""Laws of ``[faults]``: who is hit depends on seed, round and client only, and costs what it says, no more."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedsim.config import Config, naming
from fedsim.config.faults import KINDS
from fedsim.errors import ConfigError
from fedsim.experiment import api
from fedsim.experiment import run as experiment
from fedsim.experiment.dry_run import describe_run
from fedsim.federation.federation import federation_of
from fedsim.federation.injection import draw, examples_of
from fedsim.models.averaging import weighted_mean
from fedsim.models.distance import distance
from fedsim.models.params import Params
from fedsim.results import report
from fedsim.results.faults import faults_of_run
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import LocalPlan, Phase, Received, Strategy, hooks
from fedsim.strategy.participants import draw_participants
from tests.conftest import run_files, run_until

EVERY: dict[str, Any] = {
    **dict.fromkeys(("drop_out", "exception", "nan", "explode", "stale", "duplicate"), 0.15),
    **{"explode_factor": 100.0, "seconds_per_example": 0.01, "speed_spread": 0.7, "deadline": 0.5},
}
LATE = {"seconds_per_example": 0.01, "speed_spread": 0.7, "round_spread": 0.3, "deadline": 0.4}
# Faults after which a client is as if it had never been asked, an exploding update where its size is limited.
AWAY = {
    **dict.fromkeys(("drop_out", "crash", "exception", "nan"), 0.15),
    "explode": 0.25,
    "explode_factor": 1e6,
    **LATE,
}
LIMITED = {"max_update_norm": 100.0}
STRATEGIES = {
    "full": {},
    "layer_set": {"shared": "head"},
    "scaffold": {},
    "fedadam": {},
    "ditto": {},
    "flwr:FedMedian": {},
    "barrier_gated": {},
}


def faulty(tiny: Callable[..., Config], faults: dict[str, Any], name: str = "full", **changes: Any) -> Config:
    settings = {"rounds": 4, "clients": 5, "barriers": {"every": 0}, "faults": faults}
    strategy = {"name": name, **STRATEGIES.get(name, {}), **changes.pop("strategy", {})}
    return tiny(**settings | {"strategy": strategy} | changes)


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    return read_rows(folder.faults).to_dict("records")


def numbers_of(folder: RunFolder) -> dict[str, bytes]:
    """Return what a run found and what the server holds, without who was asked and what that cost."""
    files = {path.name: path.read_bytes() for path in sorted(folder.checkpoints.glob("round-00003/*.safetensors"))}
    lines = [line for line in folder.metrics.read_text().splitlines() if "simulated" not in line]
    return {name: files[name] for name in files if name != "clients.safetensors"} | {"": "\n".join(lines).encode()}


def leave_out(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no client take part in a later run where it was left out in this one."""
    gone = {(row["round"], row["client"]) for row in rows_of(folder)}

    def present(seed: int, server_round: int, *rest: Any) -> list[int]:
        every = draw_participants(seed, server_round, *rest)
        return [client for client in every if (server_round, client) not in gone]

    monkeypatch.setattr(hooks, "drawn_participants", present)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_is_the_one_in_which_those_clients_did_not_take_part(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = play(faulty(tiny, AWAY, name, rounds=3, seed=171, strategy=LIMITED), "hit")
    assert {row["kind"] for row in rows_of(hit)} == {"drop_out", "crash", "exception", "nan", "explode", "late"}
    leave_out(hit, monkeypatch)
    absent = play(faulty(tiny, {}, name, rounds=3, seed=171, strategy=LIMITED), "absent")
    assert not absent.faults.exists()
    assert numbers_of(hit) == numbers_of(absent)


@pytest.mark.parametrize(
    ("name", "strategy", "initial"),
    [
        # In 16-bit uploads, whose rounding is a part of the update.
        ("layer_set", {"max_update_norm": 0.2, "upload_precision": "bfloat16"}, "shared"),
        # Where clients begin with values of their own.
        ("layer_cycle", {"order": "deep-first", "max_update_norm": 0.22}, "shared"),
        ("full", {"max_update_norm": 0.3}, "own"),
    ],
)
def test_a_client_whose_own_update_is_too_large_did_not_take_part_either(
    name: str,
    strategy: dict[str, Any],
    initial: str,
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = faulty(tiny, {}, name, rounds=3, strategy=strategy, model__initial=initial)
    large = play(config, "large")
    assert 0 < len(rows_of(large)) < 3 * 5
    assert all(row["reason"].startswith("its update is larger than max_update_norm; ") for row in rows_of(large))
    leave_out(large, monkeypatch)
    absent = play(config, "absent")
    assert not absent.faults.exists()
    assert numbers_of(large) == numbers_of(absent)


def test_a_client_whose_update_explodes_beyond_all_numbers_did_not_take_part_either(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    explode = {"explode": 1.0, "explode_factor": 1e42, "clients": [2], "rounds": [2]}
    config = faulty(tiny, explode, "layer_set", rounds=3)
    hit = play(config, "hit")
    [row] = rows_of(hit)
    assert (row["stage"], row["kind"]) == ("train", "explode")
    assert "not finite" in row["reason"]
    leave_out(hit, monkeypatch)
    assert numbers_of(hit) == numbers_of(play(faulty(tiny, {}, "layer_set", rounds=3), "absent"))


@pytest.mark.parametrize("name", ["local", "fedproto"])
def test_nan_is_left_out_where_no_layer_is_shared(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folder = play(faulty(tiny, {"nan": 1.0, "clients": [1, 3], "rounds": [1]}, name, rounds=2))
    assert [(row["round"], row["client"], row["stage"], row["kind"]) for row in rows_of(folder)] == [
        (1, 1, "train", "nan"),
        (1, 3, "train", "nan"),
    ]


def test_without_those_that_drop_out_fedavg_is_the_weighted_mean_of_the_others(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, tuple[Params, float]] = {}
    step = Strategy.step

    def watched(strategy: Strategy, server_round: int, received: Received) -> None:
        seen.update({update.client: (update.shared, update.num_examples) for update in received.updates})
        step(strategy, server_round, received)

    monkeypatch.setattr(Strategy, "step", watched)
    changes = {"rounds": 1, "barriers": {"every": 1, "examples": 20}}  # updates are not averaged as they come
    play(faulty(tiny, {}, **changes), "whole")
    uploads = dict(seen)
    hit = play(faulty(tiny, {"drop_out": 0.6}, **changes), "hit")
    gone = {row["client"] for row in rows_of(hit)}
    assert 0 < len(gone) < 5
    there = [uploads[client] for client in uploads if client not in gone]
    expected = weighted_mean([shared for shared, _ in there], [n for _, n in there])
    found = load_file(next(hit.checkpoints.glob("*/global.safetensors")))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_duplicates_change_nothing_but_the_record_of_them(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    for name in ("full", "scaffold"):
        doubled = play(faulty(tiny, {"duplicate": 1.0}, name, rounds=1), f"doubled {name}")
        once = play(faulty(tiny, {}, name, rounds=1), f"once {name}")
        found, expected = (run_files(folder) for folder in (doubled, once))
        assert found.pop("faults.jsonl")
        assert found.keys() == expected.keys()
        changed = {name.rpartition("/")[2] for name in found if found[name] != expected[name]}
        assert changed <= {"seals.jsonl", "manifest.json"}  # which hold the hash of that record
        assert {(row["stage"], row["kind"], row["injected"]) for row in rows_of(doubled)} == {
            ("accepted", "duplicate", True)
        }


@pytest.mark.parametrize("checkpoint_every", [1, 2])
def test_a_stopped_run_resumes_byte_for_byte(
    checkpoint_every: int, tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    config = faulty(tiny, EVERY, "layer_set", checkpoint_every=checkpoint_every, seed=22)
    whole = play(config, "whole")
    run_until(config, RunFolder(tmp_path / "stopped"), 3)
    assert run_files(play(config, "stopped")) == run_files(whole)
    assert {row["kind"] for row in rows_of(whole)} >= {"drop_out", "nan", "stale", "late"}


def test_a_stopped_run_without_faults_has_no_trace_of_them(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    plain = faulty(tiny, {})
    assert naming.run_name(plain) == naming.run_name(tiny(rounds=4, clients=5, barriers={"every": 0}))
    assert naming.run_name(plain) != naming.run_name(faulty(tiny, {"nan": 0.1}))
    assert "faults" not in plain.to_toml()
    assert "[faults]" in faulty(tiny, {"nan": 0.1}).to_toml()


@pytest.mark.parametrize("cohort", [2])
def test_all_numbers_of_workers_agree(cohort: int, tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    runs = [
        play(faulty(tiny, EVERY, engine={"workers": workers, "cohort": 2}, seed=22), f"workers{workers}")
        for workers in (1, 2)
    ]
    assert run_files(runs[0]) == run_files(runs[1])


def test_a_cohort_meets_the_same_faults(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    alone, together = (
        play(faulty(tiny, EVERY, engine={"workers": 1, "cohort": cohort}, seed=22), f"cohort{cohort}")
        for cohort in (1, 4)
    )
    assert alone.faults.read_bytes() == together.faults.read_bytes()
    values = [read_rows(folder.metrics)["value"].to_numpy(dtype=float) for folder in (alone, together)]
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.ray
def test_both_engines_agree_and_a_crash_ends_a_real_worker(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    faults = {**EVERY, "crash": 0.02}
    local, distributed = (
        play(faulty(tiny, faults, "layer_set", engine={"name": name, "workers": 2}, seed=22), name)
        for name in ("local", "ray")
    )
    assert run_files(local) == run_files(distributed)
    assert "crash" in {row["kind"] for row in rows_of(distributed)}
    assert sum("was replaced (" in line for line in caplog.messages) >= 2


def test_strategies_meet_the_same_faults_and_limits_are_kept(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    limits = {"clients": [1, 3], "rounds": [2, 3]}
    found = []
    for name in ("scaffold", "ditto"):
        # In simulated time, a strategy that trains for longer is late more often.
        folder = play(faulty(tiny, {**EVERY, "drop_out": 0.5, "deadline": 1e9, **limits}, name), name)
        found.append([(row["round"], row["client"], row["kind"]) for row in rows_of(folder)])
    assert found[0] == found[1] != []
    assert {client for _, client, _ in found[0]} <= {1, 3}
    assert {server_round for server_round, _, _ in found[0]} <= {2, 3}


def test_kinds_come_as_often_as_they_should_and_do_not_disturb_each_other(tiny: Callable[..., Config]) -> None:
    config = faulty(tiny, {"drop_out": 0.2, "nan": 0.1, "stale": 0.3}, clients=40)
    places = [(server_round, client) for server_round in range(1, 101) for client in range(40)]
    kinds = [draw(config, *place, 10).kind for place in places]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
    expected = {"drop_out": 0.2, "nan": 0.8 * 0.1, "stale": 0.8 * 0.9 * 0.3}
    assert shares == pytest.approx({kind: expected.get(kind, 0.0) for kind in KINDS}, abs=0.02)
    more = faulty(tiny, {"drop_out": 0.2, "nan": 0.1, "stale": 0.3, "exception": 0.5, "duplicate": 1.0}, clients=40)
    for kind, place in zip(kinds, places, strict=True):
        if kind == "drop_out":
            assert draw(more, *place, 10).kind == "drop_out"
        elif kind:
            assert draw(more, *place, 10).kind in (kind, "exception")


def test_simulated_time_follows_the_speeds_and_late_clients_are_left_out(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = faulty(tiny, LATE, rounds=3)
    folder = play(config)
    times = read_rows(folder.metrics).query("metric == 'simulated_seconds'")
    of_clients, of_rounds = times[times["client"].notna()], times[times["client"].isna()].set_index("round")["value"]
    late = {(row["round"], row["client"]) for row in rows_of(folder)}
    for row in of_clients.to_dict("records"):
        place = int(row["round"]), int(row["client"])
        assert row["value"] == draw(config, *place, row["n"]).seconds
        assert (row["value"] > 0.4) == (place in late)
    for server_round, waited in of_rounds.items():
        values = of_clients[of_clients["round"] == server_round]["value"]
        assert waited == (0.4 if (values > 0.4).any() else values.max())
    many = faulty(tiny, LATE, clients=2000)
    speeds = [np.log(10 / draw(many, 1, client, 1000).seconds) for client in range(2000)]
    assert np.std(speeds) == pytest.approx(np.hypot(0.7, 0.3), rel=0.05)
    assert np.median(speeds) == pytest.approx(0, abs=0.05)


def test_examples_are_counted_as_often_as_a_plan_passes_them(tiny: Callable[..., Config]) -> None:
    config = tiny(local={"lr": 0.1, "batch_size": 16, "epochs": 3})
    assert examples_of(config, LocalPlan(), 50) == 150
    assert examples_of(config, LocalPlan((Phase("head", epochs=2), Phase("body", steps=4))), 50) == 100 + 64
    assert examples_of(config, LocalPlan((Phase("head", steps=4),)), 5) == 20


def updates_of(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], Params]:
    """Return a dict that is filled with what the strategy gets, by round and client."""
    seen: dict[tuple[int, int], Params] = {}
    step = Strategy.step

    def watched(strategy: Strategy, server_round: int, received: Received) -> None:
        seen.update({(server_round, update.client): update.shared for update in received.updates})
        step(strategy, server_round, received)

    monkeypatch.setattr(Strategy, "step", watched)
    return seen


def test_an_exploding_update_goes_so_many_times_as_far(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = updates_of(monkeypatch)
    changes = {"rounds": 1, "barriers": {"every": 1, "examples": 20}}
    play(faulty(tiny, {}, **changes), "plain")
    plain = dict(seen)
    config = faulty(tiny, {"explode": 1.0, "explode_factor": 1000.0, "clients": [2]}, **changes)
    play(config, "far")
    start = experiment.prepare(config)[0].initial
    far, near = (distance(updates[1, 2], start) for updates in (seen, plain))
    assert far == pytest.approx(1000 * near, rel=1e-4)
    assert all(torch.equal(seen[1, 1][key], value) for key, value in plain[1, 1].items())
    strategy = {"name": "full", "max_update_norm": 10 * near}
    limited = play(config.model_copy(update={"strategy": config.strategy.model_copy(update=strategy)}), "limited")
    [row] = rows_of(limited)
    assert (row["stage"], row["kind"]) == ("train", "explode")
    assert row["reason"].startswith("its update is larger than max_update_norm; ")


def test_what_a_client_does_not_send_explodes_neither(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = updates_of(monkeypatch)
    options, explode = {"every": 1}, {"explode": 1.0, "explode_factor": 1000.0, "clients": [2], "rounds": [3]}
    play(faulty(tiny, {}, "fedselect", rounds=3, strategy=options, barriers={"every": 1}), "plain")
    plain = seen[3, 2]
    play(faulty(tiny, explode, "fedselect", rounds=3, strategy=options, barriers={"every": 1}), "far")
    for key, value in plain.items():
        assert (value == 0).any()
        assert torch.equal(seen[3, 2][key] == 0, value == 0)
        assert not torch.equal(seen[3, 2][key], value)


@pytest.mark.parametrize("name", ["layer_set", "scaffold"])
def test_a_stale_update_is_the_one_before_and_only_of_a_client_that_had_one(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = updates_of(monkeypatch)
    folder = play(faulty(tiny, {"stale": 1.0, "clients": [2], "rounds": [1, 3]}, name, barriers={"every": 1}))
    assert [(row["round"], row["client"], row["stage"], row["kind"]) for row in rows_of(folder)] == [
        (3, 2, "accepted", "stale")
    ]
    passes = read_rows(folder.metrics).query("metric == 'backward_examples' and value == 0")
    assert passes[["round", "client"]].to_numpy().tolist() == [[3, 2]]
    same = {
        (client, later): all(torch.equal(seen[later, client][key], value) for key, value in seen[now, client].items())
        for client in (1, 2)
        for now, later in pairwise(range(1, 5))
    }
    assert {place for place, is_same in same.items() if is_same} == {(2, 3)}


@pytest.mark.parametrize(("name", "options"), [("fedselect", {"every": 1}), ("flayer", {})])
def test_a_stale_update_is_as_large_as_it_was(
    name: str,
    options: dict[str, Any],
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norms: dict[tuple[int, int], float] = {}
    step = Strategy.step

    def watched(strategy: Strategy, server_round: int, received: Received) -> None:
        norms.update({(server_round, update.client): update.norm for update in received.updates})
        step(strategy, server_round, received)

    monkeypatch.setattr(Strategy, "step", watched)
    play(faulty(tiny, {"stale": 1.0, "clients": [2], "rounds": [4]}, name, strategy=options))
    assert norms[4, 2] == norms[3, 2] != norms[4, 1]


def test_a_round_in_which_faults_take_everybody_leaves_the_model_as_it_is(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    folder = play(faulty(tiny, {"drop_out": 1.0, "rounds": [2]}, rounds=3, checkpoints={"keep": "all"}))
    models = {path.parent.name: load_file(path) for path in folder.checkpoints.rglob("global.safetensors")}
    one, two, three = (models[name] for name in sorted(models))
    assert all(torch.equal(one[key], value) for key, value in two.items())
    assert not all(torch.equal(two[key], value) for key, value in three.items())
    assert "round 2: no valid update is left; the global model is unchanged" in caplog.messages


def test_the_dry_run_says_how_long_simulated_training_takes(tiny: Callable[..., Config]) -> None:
    config = faulty(tiny, LATE, clients=2, rounds=1)
    sizes = federation_of(config).data.split.train.sizes
    seconds = [draw(config, 1, client, int(sizes[client])).seconds for client in range(2)]
    wanted = f"simulated training takes {np.mean(seconds):.4g} s in the median and {max(seconds):.4g} s at most"
    assert wanted in describe_run(config)


@pytest.mark.slow
def test_faults_are_shown_in_the_dry_run_the_page_and_the_comparison(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = faulty(tiny, {"drop_out": 0.3, "duplicate": 0.5, "seconds_per_example": 0.01})
    folder, plain = play(config), play(faulty(tiny, {}, rounds=1), "plain")
    kinds = [row["kind"] for row in rows_of(folder)]
    gone, doubled = kinds.count("drop_out"), kinds.count("duplicate")
    text = describe_run(config)
    assert f"drop_out: {gone} of 20 updates, with probability 0.3 each" in text
    assert f"duplicate: {doubled} of 20 updates, with probability 0.5 each" in text
    assert "injected faults" not in describe_run(faulty(tiny, {}))
    notes = [
        f"{gone} of 20 updates left out: injected drop_out ({gone})",
        f"{doubled} of 20 updates accepted with faults: injected duplicate ({doubled})",
    ]
    assert faults_of_run(folder, 4) == notes
    result = report.read_result(folder)
    assert result.faults["injected"].all()
    page = report.write_run(result, folder.path).read_text()
    waited = read_rows(folder.metrics).query("metric == 'simulated_seconds' and client.isna()")["value"].sum()
    assert all(text in page for text in [*notes, f"{waited:.4g} s"])
    assert api.compare([folder.path], columns="simulated").table["simulated"].tolist() == [pytest.approx(waited)]
    assert "simulated" not in api.compare([plain.path], columns="all").table


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"drop_out": 1.5}, "faults.drop_out = 1.5"),
        ({"dropout": 0.5}, "unknown key 'faults.dropout'; did you mean 'drop_out'"),
        ({"deadline": 3.0}, "deadline = 3 is in simulated time; set seconds_per_example to more than 0"),
        ({"nan": 0.1, "clients": [5]}, r"faults.clients = \[5\] names 5; the clients are 0 to 4"),
        ({"nan": 0.1, "rounds": [0]}, "faults.rounds"),
    ],
)
def test_a_wrong_setting_is_named(faults: dict[str, Any], message: str, tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        faulty(tiny, faults)


def test_rows_of_faults_that_were_not_injected_are_as_before(tmp_path: Path) -> None:
    from fedsim.results.faults import fault_row

    assert json.dumps(fault_row(1, 2, "train", "no luck")) == (
        '{"round": 1, "client": 2, "stage": "train", "reason": "no luck", "restored_from": null}'
    )
