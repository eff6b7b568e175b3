"""Features and units of the models of a round, and all that is measured after matching them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fedsim.alignment.matched import match_models
from fedsim.alignment.matching.activation_matching import match_activations
from fedsim.alignment.matching.implicit_sinkhorn import match_sinkhorn
from fedsim.alignment.merging.c2m3 import merge_c2m3
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import Permutation, identity, moved, permute, random_permutation
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.alignment.symmetries.spec import derive
from fedsim.analysis import barriers, distances
from fedsim.analysis.cka import cka
from fedsim.analysis.connectivity import connectivity
from fedsim.analysis.spectra import spectra
from fedsim.analysis.stitching import stitching
from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.measuring.barrier_cost import barrier_cost
from fedsim.experiment.measuring.uploads import measure_updates, whole_models
from fedsim.experiment.run import prepare
from fedsim.federation.federation import Federation
from fedsim.models.averaging import weighted_mean
from fedsim.models.params import combine
from fedsim.results.folder import RunFolder
from fedsim.results.measured import TABLES
from fedsim.results.report import read_result
from fedsim.results.report.pages.analysis import analysis_sections
from fedsim.seeds import rng
from fedsim.strategy import ClientUpdate
from tests.experiment.test_uploads import assert_equal_rows, measured, updates_of

Tiny = Callable[..., Config]
FEATURES = ["connectivity", "stitching", "cka", "spectra"]
NAMES, WEIGHTS = {-1: -1, 0: 3, 1: 0, 2: 2}, [13.0, 10.0, 12.0]  # of the clients 3, 0 and 2


def permuted_updates(federation: Federation) -> tuple[list[ClientUpdate], list[Permutation]]:
    """Return one model as three clients have it, with its units in different places, and what put them there."""
    [update] = updates_of(federation, (3,))
    [state] = whole_models(federation, [update])
    spec = derive(federation.model(), federation.calibration()[:2]).spec
    orders = [identity(spec), *(random_permutation(spec, rng(seed, "places")) for seed in (1, 2))]
    models = [permute(state, spec, order) for order in orders]
    return [ClientUpdate(client, model, 10.0) for client, model in zip((3, 0, 2), models, strict=True)], orders


def test_tables_of_features_are_those_of_the_analysis_with_clients_for_models(tiny: Tiny) -> None:
    config = tiny(barriers={"every": 1, "pairs": 2, "examples": 40, "measures": FEATURES, "ts": [0.0, 0.25, 0.6]})
    federation, updates, tables = measured(config)
    model, states = federation.model(), whole_models(federation, updates)
    inputs, targets = federation.data.test(40)
    assert tables.keys() == {"barriers", *FEATURES}
    assert not any("matching" in table for table in tables.values())
    assert all(set(tables[name]["data"]) == {"server"} for name in FEATURES if name != "spectra")

    found = tables["connectivity"].query("other == -1")
    assert_equal_rows(found, connectivity(model, states, inputs, weights=WEIGHTS), NAMES)
    found = tables["stitching"].query("other == -1")
    assert_equal_rows(found, stitching(model, states, inputs, targets, weights=WEIGHTS), NAMES)
    assert_equal_rows(tables["cka"], cka(model, states, inputs), NAMES)
    average = combine(states[0], weighted_mean(states, WEIGHTS))
    expected = spectra(model, [average, *states])
    assert_equal_rows(tables["spectra"], expected.assign(base=expected["base"] - 1), NAMES)

    pairs = [(name, group[["base", "other"]].drop_duplicates()) for name, group in tables.items() if "other" in group]
    counts = {name: int((each["other"] >= 0).sum()) for name, each in pairs}
    assert counts == {"barriers": 4, "stitching": 4, "connectivity": 2, "cka": 3}  # the last three have no direction
    assert set(tables["connectivity"].query("other >= 0")["t"]) == {0.25, 0.6}


def test_features_of_pairs_are_compared_halfway_where_only_ends_are_mixed(tiny: Tiny) -> None:
    config = tiny(barriers={"every": 1, "pairs": 1, "measures": ["connectivity"], "ts": [0.0, 1.0], "examples": 8})
    _, _, tables = measured(config)
    assert set(tables["connectivity"].query("other >= 0")["t"]) == {0.5}


@pytest.mark.parametrize("way", ["weights", "c2m3", "activations", "sinkhorn"])
def test_matched_models_are_measured_in_the_same_ways(tiny: Tiny, way: str) -> None:
    measures = ["distances", "connectivity", "cka", "similarity", "criticality", "spectra"]
    config = tiny(barriers={"every": 1, "examples": 40, "measures": measures, "matching": ["none", way]})
    federation, updates, tables = measured(config)
    model, states, inputs = federation.model(), whole_models(federation, updates), federation.calibration()
    derivation = derive(model, inputs[:2])
    if way == "sinkhorn":
        drawn = rng(config.seed, "matching")
        search = partial(match_sinkhorn, model, derivation.spec, states[0], rng=drawn)
        examples = federation.data.train_sample(1000)
        permutations = [identity(derivation.spec), *(search(state, *examples) for state in states[1:])]
    elif way != "activations":
        merge = {"weights": merge_many, "c2m3": merge_c2m3}[way]
        drawn = rng(config.seed, "matching")
        permutations = merge(derivation.spec, states, weights=WEIGHTS, rng=drawn).permutations
    else:
        others = [match_activations(derivation, states[0], state, inputs) for state in states[1:]]
        permutations = [identity(derivation.spec), *others]
    matched = [permute(state, derivation.spec, each) for state, each in zip(states, permutations, strict=True)]
    assert max(moved(permutations[1]).values()) > 0

    data = federation.data.test(40)
    for kind, models in (("none", states), (way, matched)):
        of_kind = {name: table.query(f"matching == '{kind}'") for name, table in tables.items()}
        assert_equal_rows(
            of_kind["barriers"],
            barriers(model, models, *data, weights=WEIGHTS, bands=0.95, groups=["layers", "full"], stratified_from=355),
            NAMES,
        )
        assert_equal_rows(of_kind["connectivity"], connectivity(model, models, data[0], weights=WEIGHTS), NAMES)
        start = federation.initial if kind == "none" else None
        expected = distances(model, models, weights=WEIGHTS, groups=["layers", "full"], start=start)
        assert_equal_rows(of_kind["distances"], expected, NAMES)
        assert of_kind["distances"]["cosine_from_start"].isna().all() == (kind == way)  # units of the start stay
    assert tables.keys() <= set(TABLES)  # whose files a resumed run removes
    shares = tables["matching"].pivot(index="base", columns="order", values="moved")
    for client, permutation in zip((3, 0, 2), permutations, strict=True):
        assert shares.loc[client].to_dict() == moved(permutation)
    assert set(tables["matching"]["units"]) == {12}


def test_what_does_not_depend_on_the_order_of_units_is_measured_once(tiny: Tiny) -> None:
    measures = ["cka", "similarity", "criticality", "spectra"]
    _, _, tables = measured(
        tiny(barriers={"every": 1, "examples": 20, "measures": measures, "matching": ["none", "weights"]})
    )
    assert all(set(tables[name]["matching"]) == {"none"} for name in ("cka", "similarity", "criticality"))
    assert set(tables["spectra"].query("matching == 'weights'")["base"]) == {-1}  # only the average changes
    _, _, alone = measured(tiny(barriers={"every": 1, "examples": 20, "measures": measures, "matching": ["weights"]}))
    assert all(set(table["matching"]) == {"weights"} for table in alone.values())
    for name in ("cka", "similarity", "criticality"):
        pd.testing.assert_frame_equal(alone[name].drop(columns="matching"), tables[name].drop(columns="matching"))
    assert set(alone["spectra"]["base"]) == {-1, 0, 2, 3}


def test_matching_permuted_clients_makes_their_barriers_vanish_and_tells_who_moved(tiny: Tiny) -> None:
    ways = ["none", "weights", "activations"]
    federation, _ = prepare(tiny(barriers={"every": 1, "matching": ways, "measures": ["connectivity", "distances"]}))
    updates, orders = permuted_updates(federation)
    tables = measure_updates(federation, updates, federation.initial, threads=1).tables
    full = tables["barriers"].query("group == 'full'")
    heights = full["loss_mean_ends"].abs().groupby(full["matching"]).max()
    assert heights["none"] > 0.1
    assert heights["weights"] == pytest.approx(0.0, abs=1e-5)
    assert heights["activations"] == pytest.approx(0.0, abs=1e-5)
    apart = tables["distances"].groupby("matching")["distance"].max()
    assert apart["none"] > 1 > 1e-4 > apart["weights"]
    cosines = tables["connectivity"].groupby("matching")["cosine"].min()
    assert cosines["weights"] == pytest.approx(1.0)
    for _, rows in tables["matching"].groupby("matching"):
        shares = rows.set_index("base")["moved"]
        # Units of a permuted copy return to where they were: as many move as the permutation had moved.
        assert shares.to_dict() == {
            client: moved(order)["fc1"] for client, order in zip((3, 0, 2), orders, strict=True)
        }


def test_models_that_diverged_are_measured_as_they_are_and_the_log_says_so(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"every": 1, "examples": 8, "matching": ["none", "activations"], "bands": 0.0, "measures": ["distances"]}
    federation, _ = prepare(tiny(barriers=settings, model={"name": "mlp", "hidden": [4, 4]}))
    updates = [  # what the second layer gives is beyond float32
        ClientUpdate(update.client, {key: 1e30 * value for key, value in (update.shared | update.probe).items()}, 1.0)
        for update in updates_of(federation)
    ]
    tables = measure_updates(federation, updates, federation.initial, threads=1).tables
    assert set(tables["barriers"]["matching"]) == {"none"}
    assert "not measured after matching by activations: " in caplog.text
    ways = {"matching": ["activations", "none"], "measures": ["criticality"]}
    federation, _ = prepare(tiny(barriers=settings | ways, model={"name": "mlp", "hidden": [4, 4]}))
    tables = measure_updates(federation, updates, federation.initial, threads=1).tables
    assert set(tables["criticality"]["matching"]) == {"none"}


def test_models_are_matched_in_a_known_way_only(tiny: Tiny) -> None:
    federation, _ = prepare(tiny())
    model, inputs, drawn = federation.model(), federation.calibration(), rng(0, "matching")
    for by in ("none", "names"):
        with pytest.raises(
            ValueError, match=f"by = '{by}' must be one of weights, c2m3, head-rotations, rotations, invertible"
        ):
            match_models(model, [federation.initial], by, inputs, rng=drawn)
    with pytest.raises(ValueError, match="by = 'sinkhorn' needs the targets of the inputs; pass targets"):
        match_models(model, [federation.initial] * 2, "sinkhorn", inputs, rng=drawn)
    with pytest.raises(ValueError, match="there are no states"):
        match_models(model, [], "weights", inputs, rng=drawn)


@pytest.mark.parametrize("way", ["gate", "gram", "units"])
def test_experts_of_a_round_are_matched_to_those_of_the_first_model(tiny: Tiny, way: str) -> None:
    model = {"name": "vit", "patch": 4, "depth": 1, "heads": 1, "width": 4, "num_experts": 3, "expert_width": 4}
    barriers = {"every": 1, "examples": 8, "groups": ["full"], "matching": ["none", way], "measures": []}
    federation, _ = prepare(tiny(model=model | {"freeze": "all - *.mlp.* - head"}, barriers=barriers))
    updates, _ = permuted_updates(federation)
    full = measure_updates(federation, updates, federation.initial, threads=1).tables["barriers"]
    heights = full["loss_mean_ends"].abs().groupby(full["matching"]).max()
    assert heights["none"] > 1e-4
    assert (heights[way] < 1e-6) == (way != "units")


def test_ways_to_match_experts_are_refused_for_a_model_without_them(tiny: Tiny) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^\[barriers\] matching: the model has no experts that can be matched; m[^\n]+$",
    ):
        prepare(tiny(barriers={"every": 1, "matching": ["none", "gram"]}))


@pytest.mark.slow
def test_a_run_keeps_its_tables_and_shows_them_after_matching_too(tiny: Tiny, play: Callable[..., RunFolder]) -> None:
    settings = {"every": 1, "measures": ["connectivity", "cka"], "examples": 20, "matching": ["none", "weights"]}
    model = {"name": "mlp", "hidden": [12], "initial": "own"}
    folder = play(tiny(rounds=1, model=model, barriers=settings | {"pairs": 0, "groups": ["full"]}))
    for name in ("barriers", "matching", "connectivity", "cka"):
        assert list(folder.measured_files(name)) == [1]
    result = read_result(folder)
    assert set(result.barriers["matching"]) == {"none", "weights"}
    assert result.measured("matching")["moved"].max() > 0.5
    sections = {section.name: section.title for section in analysis_sections(result)}
    assert sections["barriers-loss-weights"] == "Layer-wise loss barriers, after matching by weights"
    kinds = ["connectivity", "barriers-loss", "barriers-error"]
    assert set(sections) == {*kinds, *(f"{kind}-weights" for kind in kinds), "cka", "matching-weights", "variances"}


def test_each_way_to_match_is_counted_in_the_work(tiny: Tiny) -> None:
    once, thrice = (
        barrier_cost(prepare(tiny(barriers={"every": 1, "matching": ways}))[0])
        for ways in (["none"], ["none", "weights", "activations"])
    )
    assert thrice.models == 3 * once.models
    assert thrice.passes == 3 * once.passes
    assert thrice.passes_apart == 3 * once.passes_apart
    text = describe_run(tiny(barriers={"every": 1, "matching": ["weights"], "measures": [*FEATURES, "distances"]}))
    assert "not counted: connectivity, stitching, matching by weights" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matching": []}, "barriers.matching = .*must have at least one value"),
        (
            {"matching": ["weight"]},
            "barriers.matching.0 = \"weight\".*'none', 'weights', 'c2m3', 'activations', 'head-rotations', ",
        ),
        ({"matching": ["weights", "weights"]}, "barriers.matching = .*once at most"),
        ({"measures": ["conectivity"]}, 'barriers.measures.0 = "conectivity"'),
        ({"measures": ["cka", "cka"]}, "barriers.measures = .*must hold each once at most"),
        (
            {"measures": ["cka"], "examples": 3},
            r'barriers.measures = \["cka"\]: examples = 3 must be at least 4 where measures hold cka',
        ),
        (
            {"measures": ["exponential"], "pairs": 0},
            "pairs = 0 must be at least 1 where measures hold exponential, which compares clients",
        ),
        (
            {"measures": ["spectra", "calibrated"], "path": ["product"]},
            'barriers.path = .*must hold "factors", along which calibrated mixes; add it, or leave out calibrated',
        ),
        (
            {"measures": ["distances", "cka", "stitching"], "on": ["clients"]},
            r"barriers.measures = .*: on 'clients' only barriers are measured, not cka, stitching; add 'server' to",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(tiny: Tiny, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny(barriers=settings)
    assert "\n" not in str(caught.value)


def test_features_of_wide_networks_are_compared_between_clients_only(
    tiny: Tiny, play: Callable[..., RunFolder]
) -> None:
    measures = ["exponential", "calibrated"]
    result = read_result(play(tiny(barriers={"every": 2, "measures": measures, "pairs": 1, "ts": [0.0, 0.25, 1.0]})))
    ends = {
        name: set(zip(*(result.measured(name)[end] for end in ("base", "other")), strict=True)) for name in measures
    }
    assert len(ends["exponential"]) == 1
    assert ends["calibrated"] == ends["exponential"] | {(client, -1) for client in range(4)}
    assert set(result.measured("exponential")["t"]) == {0.25}


def test_cka_of_too_few_examples_is_found_before_the_run(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r'cka needs at least 4 examples, and on = "server" has 3; .*leave out'):
        prepare(tiny(data__test_examples=3, barriers={"measures": ["cka"]}))
    prepare(tiny(data__test_examples=3, barriers={"measures": ["cka"], "on": ["train"]}))


def test_a_model_that_skips_layers_is_measured_by_its_outputs_and_the_log_says_so_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "skipping.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, shape, classes):\n        super().__init__()\n"
        "        self.inner, self.fc = nn.Linear(64, 64), nn.Linear(64, classes)\n\n"
        "    def forward(self, x):\n        x = x.flatten(1)\n"
        "        return self.fc(self.inner(x) if len(x) < 6 else x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    caplog.set_level("INFO")
    settings = {"every": 1, "measures": ["connectivity", "stitching", "cka"], "examples": 20}
    _, _, tables = measured(tiny(model={"name": "skipping:Net"}, barriers=settings))
    assert tables.keys() == {"barriers", "stitching", "connectivity", "cka"}
    assert set(tables["cka"]["layer"]) == set(tables["connectivity"]["layer"]) == {"output"}
    said = "features of Net are its outputs alone: it does not call the same layers for all inputs and weights"
    assert caplog.text.count(said) == 1


def test_a_model_whose_units_cannot_be_matched_is_found_before_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "branching.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, shape, classes):\n        super().__init__()\n"
        "        self.fc = nn.Linear(64, classes)\n\n"
        "    def forward(self, x):\n        return self.fc(x.flatten(1)) if x.sum() > 0 else -self.fc(x.flatten(1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = {"name": "branching:Net"}
    prepare(tiny(model=model))
    for way in ("weights", "head-rotations", "activations", "gate"):
        with pytest.raises(
            ConfigError, match=r"\[barriers\] matching: .*; to leave .*, set matching = 'none' \(of mat"
        ) as caught:
            prepare(tiny(model=model, barriers={"matching": [way]}))
        assert str(caught.value).count("none") == 1
        assert "\n" not in str(caught.value)


def test_models_in_other_frames_are_equal_after_matching_by_rotations(tiny: Tiny) -> None:
    federation, _ = prepare(tiny(model={"name": "vit", "patch": 4, "depth": 1, "heads": 2, "width": 8, "mlp": 12}))
    model, inputs = federation.model(), federation.calibration()
    [initial] = whole_models(federation, updates_of(federation, (3,)))
    noise = torch.Generator().manual_seed(0)
    state = {key: value + 0.1 * torch.randn(value.shape, generator=noise) for key, value in initial.items()}
    for by in ("head-rotations", "rotations"):
        spec = rotation_spec(model, inputs[:2], stream=by == "rotations")
        whole = absorb_norms(state, spec.norms)
        others = [permute(whole, spec, random_permutation(spec, rng(seed, "places"))) for seed in (1, 2)]
        found = match_models(model, [state, *others], by, inputs, rng=rng(0, "matching"))
        for other in found.states:
            assert all(torch.allclose(other[key], value, atol=1e-5) for key, value in whole.items())
        turned = found.table().query("base > 0 and order.str.endswith(':rotation')")
        assert (turned["moved"] > 0.1).all()
        assert set(turned["units"]) == {8}
