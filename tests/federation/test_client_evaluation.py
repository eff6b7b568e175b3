"""What each client gets out of a run: every model on everything that it is measured on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from fedsim.config import Config, naming
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.dry_run import describe_run
from fedsim.federation.client.fine_tuning import fine_tune
from fedsim.federation.data import InputsAndTargets
from fedsim.federation.engines.state_files import StateFiles
from fedsim.federation.federation import Federation, federation_of
from fedsim.models.params import Params, flat_copy, load_state_, state_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.seeds import rng
from fedsim.strategy.participants import draw_unseen
from tests.conftest import run_files

ALL = ["personalised", "global", "trained", "fine-tuned"]
GRID: dict[str, Any] = {
    "clients": 5,
    "unseen": 0.4,
    "features": {"skew": "noise"},
    "strategy": {"name": "layer_set", "shared": "fc1"},
    "evaluation": {"models": ALL, "on": ["test", "server"], "fine_tune_epochs": 2, "fine_tune_lr": 0.3},
    "barriers": {"every": 0},
}
Play = Callable[..., RunFolder]
Tiny = Callable[..., Config]


def measured(folder: RunFolder, server_round: int, model: str, split: str, metric: str = "loss") -> dict[int, float]:
    """Return a metric by client; the server is client -1."""
    rows = read_rows(folder.metrics).query("round == @server_round and model == @model and split == @split")
    rows = rows[rows["metric"] == metric]
    return dict(zip(rows["client"].fillna(-1).astype(int), rows["value"], strict=True))


def by_hand(federation: Federation, params: Params, data: InputsAndTargets) -> tuple[float, float]:
    """Return loss and accuracy of a model."""
    model = federation.model()
    load_state_(model, params)
    with torch.no_grad():
        logits = model.eval()(data[0]).double()
    return float(cross_entropy(logits, data[1])), float((logits.argmax(1) == data[1]).double().mean())


def kept(folder: RunFolder, federation: Federation, client: int) -> Params:
    """Return a client's model after the last round: what it keeps, the server's layer, and initial values."""
    path = StateFiles(folder.checkpoints / "clients").path(client, federation.config.rounds)
    own = {key.removeprefix("model/"): value for key, value in load_file(path).items()} if path.exists() else {}
    shared = Checkpoints(folder.checkpoints).global_model(federation.config.rounds)
    return federation.initial | own | {key: value for key, value in shared.items() if key.startswith("fc1")}


def slowly_tuned(federation: Federation, params: Params, client: int) -> Params:
    """Return a client's model after two epochs of plain SGD, as one would write it down; the layer fc2 is frozen."""
    config, model = federation.config, federation.model()
    inputs, targets = federation.data.client(client).train
    load_state_(model, params)
    trained = [value for name, value in model.named_parameters() if name.startswith("fc1")]
    stream = rng(config.seed, "fine-tune", config.rounds, client)
    for _ in range(2):
        order = stream.permutation(len(targets))
        for start in range(0, len(order), config.local.batch_size):
            batch = torch.from_numpy(order[start : start + config.local.batch_size])
            loss = cross_entropy(model(inputs[batch]), targets[batch])
            for value, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                value.data -= 0.3 * gradient
    return flat_copy(state_of(model))


@pytest.mark.slow
def test_each_cell_of_the_grid_is_that_model_on_those_data(tiny: Tiny, play: Play) -> None:
    config = tiny(**GRID | {"evaluation": GRID["evaluation"] | {"fine_tune_layers": "fc1"}})
    folder, federation = play(config), federation_of(config)
    unseen = draw_unseen(config.seed, 5, 0.4)
    assert len(unseen) == 2
    server = federation.data.test()
    global_ = Checkpoints(folder.checkpoints).global_model(2)
    for client in range(5):
        data, personal = federation.data.client(client), kept(folder, federation, client)
        tuned = slowly_tuned(federation, personal, client)
        models = {"global": global_, "personalised": personal, "fine-tuned": tuned}
        for name, params in models.items():
            parts = {"unseen": data.test} if client in unseen else {"test": data.test}
            if client not in unseen and name != "global":
                parts |= {"server": server} | ({"validation": data.validation} if len(data.validation[1]) else {})
            for split, part in parts.items():
                for metric, value in zip(("loss", "accuracy"), by_hand(federation, params, part), strict=True):
                    found = measured(folder, 2, name, split, metric)[client]
                    assert found == pytest.approx(value, abs=2e-6), (client, name, split, metric)
    assert by_hand(federation, global_, server)[0] == pytest.approx(measured(folder, 2, "global", "test")[-1], abs=2e-6)


def test_no_other_cell_is_written(tiny: Tiny, play: Play) -> None:
    folder = play(tiny(**GRID, partition={"scheme": "iid"}))
    rows = read_rows(folder.metrics).query("metric == 'loss' and split != 'train'")
    clients = rows.assign(client=rows["client"].fillna(-1).astype(int))
    found = clients.groupby(["round", "model", "split"])["client"].agg(list).to_dict()
    seen = sorted({0, 1, 2, 3, 4} - set(draw_unseen(0, 5, 0.4)))
    unseen = draw_unseen(0, 5, 0.4)
    each = {("global", "test"): [*seen, -1], ("global", "unseen"): unseen, ("personalised", "unseen"): unseen}
    each |= {
        (model, split): seen for model in ("personalised", "trained") for split in ("validation", "test", "server")
    }
    last = {("fine-tuned", split): seen for split in ("validation", "test", "server")} | {
        ("fine-tuned", "unseen"): unseen
    }
    assert found == {(1, *key): value for key, value in each.items()} | {
        (2, *key): value for key, value in (each | last).items()
    }


def test_trained_is_the_model_that_a_client_uploads(tiny: Tiny, play: Play) -> None:
    """With one participant, the server's model is what it has just uploaded."""
    folder = play(tiny(clients=2, participation=0.5, rounds=3, evaluation={"models": ALL, "on": ["test", "server"]}))
    [participant] = pd.read_json(folder.participants).iloc[2]
    for metric in ("loss", "accuracy"):
        assert measured(folder, 3, "trained", "server", metric) == {
            participant: pytest.approx(measured(folder, 3, "global", "test", metric)[-1], abs=1e-6)
        }
        trained = measured(folder, 3, "trained", "test", metric)
        assert trained == {participant: pytest.approx(measured(folder, 3, "global", "test", metric)[participant])}


def test_trained_is_measured_before_averaging(tiny: Tiny, play: Play) -> None:
    folders = [
        play(tiny(strategy={"name": name}, rounds=1, evaluation={"models": ALL}), name) for name in ("local", "full")
    ]
    alone, averaged = (measured(folder, 1, "trained", "test") for folder in folders)
    # In round 1 no average has been taken yet, and local training is never averaged.
    assert alone == averaged == measured(folders[0], 1, "personalised", "test")
    assert averaged != measured(folders[1], 1, "personalised", "test")


@pytest.mark.parametrize("name", ["local", "ditto"])
def test_a_model_that_is_never_averaged_is_as_received_what_training_made_of_it(
    tiny: Tiny, play: Play, name: str
) -> None:
    folder = play(tiny(strategy={"name": name}, evaluation={"models": ALL}, barriers={"every": 0}))
    assert measured(folder, 2, "trained", "test") == measured(folder, 2, "personalised", "test")


def _without_seals(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "manifest" not in name and name != "seals.jsonl"}


def test_evaluating_more_changes_nothing_else(tiny: Tiny, play: Play) -> None:
    settings = {"rounds": 3, "strategy": {"name": "layer_set", "shared": "body"}, "local__momentum": 0.9}
    plain = play(tiny(**settings), "plain")
    more = play(tiny(**settings, evaluation={"models": ALL, "on": ["test", "server"], "fine_tune_every": 1}), "more")
    before, after = (_without_seals(run_files(folder)) for folder in (plain, more))
    kept = [
        line
        for line in after.pop("metrics.jsonl").splitlines()
        if b"trained" not in line and b"tuned" not in line and b'"server"' not in line
    ]
    assert kept == before.pop("metrics.jsonl").splitlines()
    assert after == before


def test_fine_tuning_trains_its_group_only_and_keeps_nothing(tiny: Tiny) -> None:
    config = tiny(evaluation={"models": ALL, "fine_tune_epochs": 1})
    federation = federation_of(config)
    before = {key: value.clone() for key, value in federation.initial.items()}
    tuned = fine_tune(federation, federation.initial, federation.data.client(0).train, 1, 0, "head")
    changed = {key for key, value in tuned.items() if not torch.equal(value, before[key])}
    assert changed == {"fc2.weight", "fc2.bias"}
    assert all(torch.equal(value, before[key]) for key, value in federation.initial.items())
    other = fine_tune(federation, federation.initial, federation.data.client(0).train, 2, 0, "head")
    assert not torch.equal(other["fc2.weight"], tuned["fc2.weight"])  # another order of the examples


def test_fine_tuning_is_due_after_the_last_round_and_every_so_many(tiny: Tiny, play: Play) -> None:
    settings = {"rounds": 5, "evaluate_every": 3, "barriers": {"every": 0}}
    folder = play(tiny(**settings, evaluation={"models": ALL, "fine_tune_every": 2}))
    rows = read_rows(folder.metrics).query("metric == 'loss' and split == 'test' and client == 0")
    rounds = rows.groupby("model")["round"].agg(list).to_dict()
    # Rounds with fine-tuning are evaluated too, so that there is something to compare with.
    assert rounds == {
        "fine-tuned": [2, 4, 5],
        "global": [2, 3, 4, 5],
        "personalised": [2, 3, 4, 5],
        "trained": [2, 3, 4, 5],
    }


@pytest.mark.ray
@pytest.mark.slow
def test_the_grid_does_not_depend_on_the_engine(tiny: Tiny, play: Play) -> None:
    engines = {"one": {"workers": 1}, "two": {"workers": 2}, "ray": {"name": "ray", "workers": 1}}
    folders = [run_files(play(tiny(**GRID, engine=engine), name)) for name, engine in engines.items()]
    assert folders[0] == folders[1] == folders[2]


def test_a_cohort_measures_the_same_to_float_tolerance(tiny: Tiny, play: Play) -> None:
    tables = [
        read_rows(play(tiny(**GRID, engine={"workers": 1, "cohort": size}), f"cohort{size}").metrics) for size in (1, 3)
    ]
    names = ["round", "client", "split", "model", "metric"]
    one, many = (table.sort_values(names).reset_index(drop=True) for table in tables)
    assert one[[*names, "n"]].equals(many[[*names, "n"]])
    losses = one["metric"] == "loss"
    assert np.allclose(one["value"][losses], many["value"][losses], atol=1e-5)


def test_defaults_rename_no_run(tiny: Tiny) -> None:
    assert not naming.changed_settings(tiny()).keys() & {"evaluation", "stop", "unseen"}
    spelt_out = tiny(
        unseen=0.0, evaluation={"models": ["personalised", "global"], "on": ["test"]}, stop={"patience": 0}
    )
    assert naming.run_name(spelt_out) == naming.run_name(tiny())


def test_a_dry_run_counts_what_evaluation_costs(tiny: Tiny) -> None:
    config = tiny(**GRID)
    split, unseen = federation_of(config).data.split, draw_unseen(0, 5, 0.4)
    passes = tuning = 0
    for client in range(5):
        test, validation, train = (int(part.sizes[client]) for part in (split.test, split.validation, split.train))
        own = test if client in unseen else test + validation + 60
        passes += 2 * (own + test) + own + (0 if client in unseen else 2 * own)
        tuning += 2 * train
    text = describe_run(config)
    assert f"2 of 5 clients never train: {unseen[0]}, {unseen[1]}" in text
    assert f"in 2 of 2 rounds, at most {passes:,} forward passes of one example for the clients and 120 for" in text
    assert f"in 1 of 2 rounds, clients fine-tune 'all': {tuning:,} examples forward and backward" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"models": ["personalised"]},
            r'evaluation.models = \["personalised"\]: must hold "personalised" and "global"',
        ),
        ({"models": [*ALL, "tuned"]}, r'evaluation.models.4 = "tuned": .*fine-tuned'),
        ({"on": ["server"]}, r'evaluation.on = \["server"\]: must hold "test"'),
        ({"fine_tune_epochs": 0}, "evaluation.fine_tune_epochs = 0"),
        ({"fine_tune_lr": 0.0}, "evaluation.fine_tune_lr = 0.0"),
        ({"fine_tune": 1}, "unknown key 'evaluation.fine_tune'; did you mean 'fine_tune_"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny: Tiny, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(evaluation=settings)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            "none",
            "evaluation.fine_tune_layers = 'none' must hold a parameter to train; name other layers, of: fc1, fc2",
        ),
        ("hed*", "evaluation.fine_tune_layers = 'hed.*' names no layers: .* layers are: fc1, fc2"),
    ],
)
def test_fine_tuning_without_a_parameter_is_found_before_anything_is_written(
    tiny: Tiny, play: Play, layers: str, message: str
) -> None:
    config = tiny(evaluation={"models": ALL, "fine_tune_layers": layers})
    with pytest.raises(ConfigError, match=message):
        experiment.prepare(config)
