"""Whole runs of models with adapters: what travels, where clients start, and merged models taken out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedsim.config import Config, choices, making, naming
from fedsim.config.experiment_file import read_experiment
from fedsim.errors import ConfigError
from fedsim.experiment.planning.traffic import planned_traffic
from fedsim.experiment.restored import restored_model
from fedsim.experiment.run import prepare
from fedsim.federation.federation import federation_of
from fedsim.models.adapters import adapted_paths
from fedsim.results.folder import RunFolder
from fedsim.results.measured import by_kind
from fedsim.results.reading import read_result
from tests.conftest import run_files

ADAPTER = {"kind": "lora", "rank": 3}
MODEL: dict[str, Any] = {"name": "mlp", "hidden": [12, 12], "adapter": ADAPTER}
A = {"fc1.lora_A.default.weight", "fc2.lora_A.default.weight"}
B = {"fc1.lora_B.default.weight", "fc2.lora_B.default.weight"}
HEAD = {"fc3.weight", "fc3.bias"}


def test_an_adapted_model_starts_as_its_base_and_its_first_factor_follows_from_the_seed(
    tiny: Callable[..., Config],
) -> None:
    model = federation_of(tiny(model=MODEL)).model()
    base = federation_of(tiny(model=MODEL | {"adapter": {"kind": "none"}})).model()
    again, other = (federation_of(tiny(model=MODEL, seed=seed)).initial for seed in (0, 1))
    inputs = torch.linspace(0, 1, 128).view(2, 1, 8, 8)
    assert torch.equal(model(inputs), base(inputs))
    assert again.keys() == A | B | HEAD
    assert all(torch.equal(again[key], model.state_dict()[key]) for key in again)
    assert not any(torch.equal(again[key], other[key]) for key in A)
    assert not any(again[key].any() for key in B)


def test_a_config_without_an_adapter_has_the_name_and_the_text_that_it_had(tiny: Callable[..., Config]) -> None:
    plain, none = tiny(model={"name": "mlp"}), tiny(model={"name": "mlp", "adapter": {"kind": "none"}})
    assert naming.run_name(none) == naming.run_name(plain) != naming.run_name(tiny(model={"name": "mlp"} | MODEL))
    assert "adapter" not in plain.to_toml()
    assert "[model.adapter]" in tiny(model=MODEL).to_toml()


def test_barriers_are_measured_along_each_path(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    barriers = {"every": 1, "pairs": 1, "path": ["factors", "product", "aligned"], "groups": ["adapters", "full"]}
    folder = play(tiny(rounds=1, model=MODEL, barriers=barriers))
    rows = read_result(folder).barriers
    at = rows[(rows["group"] == "full") & (rows["data"] == "server")].pivot_table(
        index=["base", "other", "t"], columns="path", values="loss"
    )
    ends, middle = at.loc[(slice(None), slice(0, None), [0.0, 1.0]), :], at.loc[(slice(None), slice(None), 0.5), :]
    assert (ends["product"] == ends["factors"]).all()
    assert (ends["aligned"] == ends["factors"]).all()
    assert not (middle["product"] == middle["factors"]).any()
    assert [kind.path for kind in by_kind(rows)] == ["factors", "product", "aligned"]


def test_a_path_without_factors_is_refused_before_the_run(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"^\[barriers\] path = 'product' needs adapters of LoRA"):
        prepare(tiny(model={"name": "mlp"}, barriers={"every": 1, "path": ["product"]}))


def test_only_what_is_shared_of_the_factors_travels_and_a_client_s_model_comes_out_merged(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    settings = {
        "model": MODEL,
        "strategy": {"name": "layer_set", "shared": "*lora_A* | head"},
        "barriers": {"every": 0},
    }
    folder, cohort = play(tiny(**settings)), play(tiny(**settings, engine__cohort=4), "cohort")
    result = read_result(folder)
    assert set(result.communication["layer"]) == {"fc1.lora_A.default", "fc2.lora_A.default", "fc3"}
    kept = {
        key.rpartition("/")[2] for path in folder.checkpoints.rglob("clients/*.safetensors") for key in load_file(path)
    }
    assert kept & (A | B | HEAD) == B
    model = restored_model(folder, client=1)  # which compares its loss with the recorded one
    assert not adapted_paths(model)
    assert [tuple(value.shape) for value in model.state_dict().values()][:2] == [(12, 64), (12,)]
    values = (torch.tensor(each.metrics["value"].to_numpy()) for each in (read_result(cohort), result))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "error"),
    [("FedIT", "some"), ("FFA-LoRA", "none"), ("FedEx-LoRA", "none"), ("FLoRA", "none"), ("FedSA-LoRA", "unknown")],
)
def test_the_error_of_averaging_factors_is_recorded_where_the_server_knows_them(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], name: str, error: str
) -> None:
    result = read_result(play(tiny(model=MODEL, strategy={"name": name}, barriers={"every": 0})))
    products = result.measured("products")
    if error == "unknown":
        assert products.empty
        return
    assert list(zip(products["round"], products["layer"], strict=True)) == [
        (1, "fc1"),
        (1, "fc2"),
        (2, "fc1"),
        (2, "fc2"),
    ]
    assert (products["size"] > 0).all()
    # Factors are stored in float32.
    assert (products["aggregation_error"] > 1e-4).all() if error == "some" else (products["distance"] < 1e-6).all()


def test_a_method_has_its_paper_s_head_and_a_start_that_it_cannot_have_is_refused(
    tiny: Callable[..., Config],
) -> None:
    config = tiny(model=MODEL, strategy={"name": "FedSA-LoRA"})
    strategy = making.make_strategy(config, federation_of(config).model())
    assert strategy.shared(1).layers == ("fc1.lora_A.default", "fc2.lora_A.default")
    own = tiny(model=MODEL | {"initial": "own"}, strategy={"name": "FedRot-LoRA"})
    with pytest.raises(ConfigError, match="'FedRot-LoRA' needs a common start of all clients' factors; set"):
        making.make_strategy(own, federation_of(own).model())


@pytest.mark.parametrize("name", ["FlexLoRA", "FLoRA"])
def test_clients_of_different_ranks_train_send_and_resume_by_their_own(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], name: str
) -> None:
    model = MODEL | {"adapter": {"kind": "lora", "ranks": [4, 1]}}
    settings: dict[str, Any] = {"model": model, "strategy": {"name": name}, "barriers": {"every": 0}, "rounds": 3}
    config = tiny(**settings)
    assert config.model.adapter.rank == 4
    folder, cohort = play(config), play(tiny(**settings, engine__cohort=4), "cohort")
    assert run_files(folder) == run_files(play(choices.resolve(config), "again"))
    result = read_result(folder)
    rows = result.communication
    up = rows[(rows["layer"] == "fc1.lora_A.default") & (rows["set"] == "model")].groupby("client")["up"].max()
    assert up.to_dict() == {client: 64 * 4 * (4, 1)[client % 2] for client in up.index}
    federation = federation_of(config)
    strategy = making.make_strategy(config, federation.model(), federation.calibration())
    planned = planned_traffic(federation, strategy)
    assert (planned.up, planned.down) == (rows["up"].sum(), rows["down"].sum())
    if name == "FLoRA":
        assert (result.measured("products")["distance"] < 1e-6).all()
    for client in (None, 1):  # restoring compares the loss with the recorded one
        restored_model(folder, client)
    values = (torch.tensor(each.metrics["value"].to_numpy()) for each in map(read_result, (cohort, folder)))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)


def test_scales_of_vera_train_and_travel_and_its_random_factors_follow_from_the_seed(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    model = MODEL | {"adapter": {"kind": "vera", "rank": 30}}
    folder, cohort = play(tiny(model=model)), play(tiny(model=model, engine__cohort=4), "cohort")
    result = read_result(folder)
    scales = {f"fc{number}.vera_lambda_{name}" for number in (1, 2) for name in "bd"}
    assert set(result.communication["layer"]) == scales | {"fc3"}
    assert not adapted_paths(restored_model(folder, client=1))
    values = (torch.tensor(each.metrics["value"].to_numpy()) for each in (read_result(cohort), result))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)
    drawn = [federation_of(tiny(model=model, seed=seed)).model().fc2.vera_A["default"] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_ranks_that_differ_are_refused_by_methods_that_average_factors(tiny: Callable[..., Config]) -> None:
    config = tiny(model=MODEL | {"adapter": {"kind": "lora", "ranks": [4, 1]}}, strategy={"name": "FedIT"})
    with pytest.raises(ConfigError, match=r"'FedIT' needs factors of one rank, .* or use flexlora or flora"):
        making.make_strategy(config, federation_of(config).model())


BASE = {"fc1.base_layer.weight", "fc2.base_layer.weight"}


def test_stacks_travel_down_and_a_client_that_was_absent_gets_the_weights(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    settings: dict[str, Any] = {"model": MODEL, "strategy": {"name": "FLoRA"}, "rounds": 3}
    rows = read_result(play(tiny(**settings))).communication
    stacks = rows[rows["set"] == "stack"]
    clients = rows["client"].nunique()
    assert set(stacks.loc[stacks["layer"] == "fc1.lora_A.default", "down"]) == {clients * 3 * 64 * 4}
    assert set(stacks.loc[stacks["layer"] == "fc1.lora_B.default", "down"]) == {clients * 3 * 12 * 4}
    assert not set(rows["layer"]) & {"fc1.base_layer", "fc2.base_layer"}
    rows = read_result(folder := play(tiny(**settings, participation=0.5), "half")).communication
    assert set(rows.loc[rows["layer"] == "fc1.base_layer", "down"]) == {12 * 64 * 4}
    for client in (None, 1):  # restoring compares the loss with the recorded one
        restored_model(folder, client)


def test_weights_that_the_server_changes_travel_down_only_and_are_in_models_taken_out(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    settings: dict[str, Any] = {"model": MODEL, "strategy": {"name": "FedEx-LoRA"}, "rounds": 3, "participation": 0.5}
    folder, cohort = play(tiny(**settings)), play(tiny(**settings, engine__cohort=4), "cohort")
    rows = read_result(folder).communication
    base = rows[rows["layer"].str.endswith("base_layer")]
    assert set(base["up"]) == {0}
    assert set(base.loc[base["layer"] == "fc1.base_layer", "down"]) == {12 * 64 * 4}
    assert sorted(base["round"].unique()) == [2, 3]  # in the first, clients have them
    kept = {
        key.rpartition("/")[2] for path in folder.checkpoints.rglob("clients/*.safetensors") for key in load_file(path)
    }
    assert not kept & BASE
    for client in (None, 1):  # restoring compares the loss with the recorded one
        model = restored_model(folder, client)
        assert list(model.state_dict()) == list(
            federation_of(tiny(model=MODEL | {"adapter": {"kind": "none"}})).initial
        )
    assert all(value.requires_grad for value in model.fc3.parameters())
    values = (torch.tensor(each.metrics["value"].to_numpy()) for each in map(read_result, (cohort, folder)))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)


def test_weights_from_a_file_are_the_base_s(tiny: Callable[..., Config], tmp_path: Any) -> None:
    base = federation_of(tiny(model={"name": "mlp", "hidden": [12, 12]}, seed=3)).model()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    found = federation_of(tiny(model=MODEL | {"weights": str(tmp_path / "base.pt")})).model()
    inputs = torch.linspace(0, 1, 128).view(2, 1, 8, 8)
    assert torch.equal(found(inputs), base(inputs))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"rank": 4}, "model.adapter: rank is set without a kind; add kind = 'lora'"),
        ({"kind": "lora", "rank": 0}, "model.adapter.rank = 0: must be at least 1"),
        ({"kind": "lora", "ranc": 1}, "unknown key 'model.adapter.ranc'; did you mean 'rank'"),
        ({"kind": "lora", "ranks": [2, 3], "rank": 2}, "rank = 2 and ranks, whose largest is 3, are set; remove rank"),
        (
            {"kind": "lora", "ranks": [2, 40]},
            r"\[model.adapter\] ranks has 40, which is greater than the size of fc1, 12",
        ),
        ({"kind": "ia3", "ranks": [2]}, "ranks is for kind = 'lora', and kind = 'ia3'; remove it"),
        ({"kind": "lora", "ranks": [2, 0]}, r"model.adapter.ranks.* must be at least 1"),
        ({"kind": "lora", "targets": "nope"}, r"\[model.adapter\] layer pattern 'nope' matches nothing"),
        ({"kind": "lora", "rank": 40}, r"\[model.adapter\] rank = 40 is greater than the size of fc1, 12"),
    ],
)
def test_a_wrong_adapter_is_one_line(tiny: Callable[..., Config], adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        federation_of(tiny(model=MODEL | {"adapter": adapter}))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"kind": "vera", "alpha": 8.0},
            "e.toml: model.adapter.alpha = 8 has no effect with kind = 'vera', only with 'lora' or 'dora'; remove it",
        ),
        (
            {"kind": "ia3", "rank": 4},
            "e.toml: model.adapter.rank = 4 has no effect with kind = 'ia3', only with 'lora' or 'dora' or 'vera'; "
            "remove it",
        ),
    ],
)
def test_an_idle_option_of_an_adapter_is_refused_in_an_experiment_and_read_in_an_earlier_run(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(model=MODEL | {"adapter": adapter})
    Path("e.toml").write_text(config.to_toml())
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        read_experiment("e.toml")
    folder = RunFolder(tmp_path)
    folder.config.write_text(config.to_toml())
    assert folder.read_config().model.adapter == config.model.adapter


def test_a_file_and_a_resumed_run_keep_their_bytes(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    config = tiny(model=MODEL, strategy={"name": "fedper"}, barriers={"every": 2, "on": ["server"], "examples": 20})
    assert run_files(play(config)) == run_files(play(choices.resolve(config), "again"))
