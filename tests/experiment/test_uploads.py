from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.analysis import barriers, criticality, distances, interaction, robustness, similarity
from fedsim.analysis.suite import MEASURES
from fedsim.config import Config
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.measuring.barrier_cost import AUTO_SHARE, barrier_cost, rounds_between
from fedsim.experiment.measuring.uploads import measure_updates, whole_models
from fedsim.experiment.run import prepare
from fedsim.federation.federation import Federation
from fedsim.results.folder import RunFolder
from fedsim.strategy import ClientUpdate

Tiny = Callable[..., Config]
ALL = ["distances", "robustness", "similarity", "criticality", "interaction"]


def updates_of(federation: Federation, clients: tuple[int, ...] = (3, 0, 2)) -> list[ClientUpdate]:
    """Clients' models far from each other, the last layer personal."""
    updates = []
    for client in clients:
        generator = torch.Generator().manual_seed(client)
        moved = {key: v + 0.3 * torch.randn(v.shape, generator=generator) for key, v in federation.initial.items()}
        personal = {key: moved.pop(key) for key in list(moved)[-2:]}
        updates.append(ClientUpdate(client, moved, 10.0 + client, probe=personal))
    return updates


def measured(config: Config) -> tuple[Federation, list[ClientUpdate], dict[str, pd.DataFrame]]:
    federation, _ = prepare(config)
    updates = updates_of(federation)
    return federation, updates, measure_updates(federation, updates, federation.initial, threads=2).tables


def assert_equal_rows(found: pd.DataFrame, expected: pd.DataFrame, names: dict[int, int]) -> None:
    expected = expected.assign(**{c: expected[c].map(names) for c in ("base", "other") if c in expected})
    pd.testing.assert_frame_equal(found[expected.columns].reset_index(drop=True), expected, check_exact=True)


def test_tables_are_those_of_the_analysis_with_clients_for_models(tiny: Tiny) -> None:
    config = tiny(barriers={"every": 1, "pairs": 2, "examples": 40, "measures": ALL, "groups": ["layers", "body"]})
    federation, updates, tables = measured(config)
    model, states, names = federation.model(), whole_models(federation, updates), {-1: -1, 0: 3, 1: 0, 2: 2}
    data, groups = federation.data.test(40), {"groups": ["layers", {"body": "body"}], "seed": config.seed}
    weights = {"weights": [13.0, 10.0, 12.0]}
    assert tables.keys() == {"barriers", *ALL}
    assert all(set(table["data"]) == {"server"} for name, table in tables.items() if name != "distances")

    def average(name: str) -> pd.DataFrame:
        return tables[name].query("other == -1")

    # The sample of the server's test examples is stratified, and standard errors are those of such a sample.
    drawn = {"stratified_from": 355}
    expected = barriers(model, states, *data, bands=0.95, **groups, **weights, **drawn)
    assert set(expected["sampling"]) == {"stratified: 40 of 355"}
    assert_equal_rows(average("barriers"), expected, names)
    start = federation.initial
    assert_equal_rows(average("distances"), distances(model, states, start=start, **groups, **weights), names)
    assert_equal_rows(average("robustness"), robustness(model, states, *data, **groups, **weights), names)
    assert_equal_rows(average("interaction"), interaction(model, states, *data, **weights, **drawn), names)
    assert_equal_rows(tables["criticality"], criticality(model, states, start, *data, **groups, **drawn), names)
    assert_equal_rows(tables["similarity"], similarity(model, states, data[0]), names)
    pairs = tables["barriers"].query("other != -1")
    assert set(pairs["t"]) == {0.0, 0.5, 1.0}
    assert {frozenset(pair) for pair in zip(pairs["base"], pairs["other"], strict=True)} <= {
        frozenset(pair) for pair in [(0, 2), (0, 3), (2, 3)]
    }
    assert len(pairs[["base", "other"]].drop_duplicates()) == 4


def test_each_clients_model_is_measured_on_its_own_test_data(tiny: Tiny) -> None:
    config = tiny(barriers={"every": 1, "pairs": 3, "ts": [0.25], "on": ["clients"], "bands": 0.0})
    federation, updates, tables = measured(config)
    assert tables.keys() == {"barriers", "distances"}
    model, states = federation.model(), whole_models(federation, updates)
    for position, update in enumerate(updates):
        data = federation.data.client(update.client).test
        options: dict[str, Any] = {"groups": ["layers", "full"], "seed": config.seed}
        own = tables["barriers"].query(f"base == {update.client}")
        assert set(own["n"]) == {len(data[1])}
        expected = barriers(model, states, *data, weights=[13.0, 10.0, 12.0], against=[(position, -1)], **options)
        np.testing.assert_array_equal(own.query("other == -1")["loss_mean_ends"], expected["loss_mean_ends"])
        pairs = [(position, other) for other in range(3) if other != position]
        expected = barriers(model, states, *data, against=pairs, ts=[0.25], **options)
        found = own.query("other != -1").sort_values(["group", "loss"])
        np.testing.assert_array_equal(found["loss"], expected.sort_values(["group", "loss"])["loss"])


def test_the_union_of_the_clients_training_data_is_measured_on(tiny: Tiny) -> None:
    federation, updates, tables = measured(tiny(barriers={"every": 1, "on": ["train", "server"], "examples": 50}))
    rows = tables["barriers"]
    assert rows.groupby("data")["n"].unique().to_dict() == {"server": [50], "train": [50]}
    data = federation.data.train_sample(50)
    weights = [update.num_examples for update in updates]
    expected = barriers(federation.model(), whole_models(federation, updates), *data, weights=weights)
    found = rows.query("data == 'train' and group != 'full'")
    np.testing.assert_array_equal(found["loss"], expected["loss"])


def test_a_model_that_is_its_own_average_has_no_barriers_and_is_not_compared_on_data(tiny: Tiny) -> None:
    config = tiny(barriers={"every": 1, "on": ["server", "clients"], "pairs": 1, "measures": list(MEASURES)})
    federation, _ = prepare(config)
    tables = measure_updates(federation, updates_of(federation, clients=(1,)), federation.initial, threads=1).tables
    assert tables.keys() == {"distances", "criticality", "spectra"}
    assert tables["distances"]["base_from_start"].gt(0).all()


def test_the_sample_for_matching_is_only_drawn_where_models_are_matched(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, _ = prepare(tiny(barriers={"every": 1, "examples": 20}))
    monkeypatch.setattr(Federation, "calibration_sample", lambda self: pytest.fail("drawn"))
    assert "barriers" in measure_updates(federation, updates_of(federation), federation.initial, threads=1).tables


def test_fewer_examples_than_asked_for_are_all_used(tiny: Tiny) -> None:
    _, _, tables = measured(tiny(barriers={"every": 1, "examples": 10_000}))
    assert set(tables["barriers"]["n"]) == {60}


def test_a_table_says_how_each_kind_of_its_data_was_drawn(tiny: Tiny) -> None:
    def drawn(examples: int, **changes: Any) -> tuple[dict[str, str], int]:
        views = {"every": 1, "on": ["server", "train", "clients"], "examples": examples}
        federation, _, tables = measured(tiny(barriers=views, **changes))
        return tables["barriers"].groupby("data")["sampling"].first().to_dict(), len(federation.data.trained_on)

    found, trained = drawn(50)
    assert found == {"server": "stratified: 50 of 355", "train": f"stratified: 50 of {trained}", "clients": "free"}
    # The test set of a run may itself be such a sample.
    assert drawn(10_000)[0] == {"server": "stratified: 60 of 355", "train": "free", "clients": "free"}
    assert drawn(10_000, data__test_examples=355)[0]["server"] == "free"


@pytest.mark.slow
def test_statistics_are_recomputed_on_the_clients_training_data(tiny: Tiny) -> None:
    image = {"data": {"name": "digits"}, "model": {"name": "resnet20", "norm": "batch"}}
    config = tiny(barriers={"every": 1, "examples": 20, "normalisation": "recompute", "groups": ["full"]}, **image)
    federation, updates, tables = measured(config)
    expected = barriers(
        federation.model(),
        whole_models(federation, updates),
        *federation.data.test(20),
        groups="full",
        weights=[13.0, 10.0, 12.0],
        normalisation="recompute",
        calibration=federation.data.train_sample(1000)[0],
    )
    np.testing.assert_array_equal(tables["barriers"]["loss"], expected["loss"])
    assert set(tables["barriers"]["normalisation"]) == {"recompute"}


def test_work_is_counted_in_passes_through_the_whole_model(tiny: Tiny) -> None:
    # An mlp of two layers: 64 * 12 and 12 * 10 weights; four clients, no pairs.
    federation, _ = prepare(tiny(barriers={"every": 1, "examples": 50}, local__epochs=3))
    work = barrier_cost(federation)
    first, second = 64 * 12, 12 * 10
    # Four models and the average as a whole; each client's second layer behind the average's first, and on its own.
    computed = (4 + 1) * first + (4 + 1 + 4 + 4) * second
    assert work.models == 4 + 1 + 4 * 2
    assert work.passes == pytest.approx(50 * computed / (first + second))
    assert work.passes_apart == 50 * work.models
    assert work.training_passes == 3 * 3 * federation.data.split.train.sizes.sum()


def test_by_default_barriers_take_a_tenth_of_the_trainings_work(tiny: Tiny) -> None:
    def every(**changes: Any) -> tuple[int, float]:
        federation, _ = prepare(tiny(barriers={}, **changes))
        work = barrier_cost(federation)
        return rounds_between(federation), work.passes / work.training_passes

    rounds, share = every(rounds=100)
    assert share / rounds <= AUTO_SHARE < share / (rounds - 1)
    assert every(rounds=100, local__epochs=5)[0] == pytest.approx(rounds / 5, abs=1)
    assert every(rounds=2) == (0, share)
    assert rounds_between(prepare(tiny(barriers={"every": 7}))[0]) == 7


def test_a_dry_run_says_what_the_analysis_costs(tiny: Tiny) -> None:
    text = describe_run(tiny(rounds=100, barriers={"measures": ALL}))
    assert "of 100 rounds, 13 models on 60 examples each" in text
    assert "passes of the training" in text
    assert "not counted: robustness, criticality, interaction" in text
    assert "none: a round of barriers would cost more than 10 % of training" in describe_run(tiny(barriers={}))
    assert "none; set barriers.every" in describe_run(tiny(barriers={"every": 0}))


def test_a_run_keeps_every_table_and_forgets_those_of_rounds_that_it_plays_again(
    tiny: Tiny, play: Callable[..., RunFolder]
) -> None:
    folder = play(tiny(rounds=2, barriers={"every": 1, "measures": ALL, "examples": 20}))
    for name in ("barriers", *ALL):
        assert list(folder.measured_files(name)) == [1, 2]
    spoilt = folder.measured("robustness", 3)
    spoilt.write_bytes(b"of a round that was not finished")
    folder.done.unlink(missing_ok=True)
    play(tiny(rounds=2, barriers={"every": 1, "measures": ALL, "examples": 20}))
    assert not spoilt.exists()
