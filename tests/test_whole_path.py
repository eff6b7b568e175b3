"""From the real data to the numbers of a report."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.data.fashion_mnist import DEBIAN_FOLDER
from fedsim.federation import federation_of
from fedsim.records import RunFolder, read_rows
from fedsim.report import read_result, write_run

FASHION = {
    "rounds": 4,
    "clients": 5,
    "data": {"name": "fashion-mnist", "train_examples": 3000, "test_examples": 1000},
    "model": {"name": "cnn"},
    "local": {"lr": 0.1, "epochs": 2},
    "barriers": {"every": 4, "examples": 200, "pairs": 1},
    "engine": {"workers": 0},
}


@pytest.fixture(scope="module")
def _data() -> None:
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")


@pytest.mark.usefixtures("_data")
def test_fedavg_learns_fashion_mnist(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    folder = play(tiny(**FASHION, partition={"scheme": "dirichlet", "alpha": 10.0}))
    result = read_result(folder)
    # Chance is 0.1. 600 examples a client, 4 rounds of one epoch.
    assert result.on_server("global").loc[4] > 0.6
    assert result.by_client("personalised").mean() > 0.6
    losses = result.of("global", "loss", server=True)["value"].to_numpy()
    assert (np.diff(losses) < 0).all()
    barriers = result.barriers.query("other == -1")
    assert set(barriers["group"]) == {"full", "conv1", "conv2", "fc1", "fc2"}
    assert len(barriers) == 5 * 5
    page = write_run(result, tmp_path).read_text()
    assert page.count("<img") == 5


@pytest.mark.usefixtures("_data")
def test_under_strong_skew_a_personal_head_beats_the_global_model_on_the_clients_data(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    partition = {"scheme": "dirichlet", "alpha": 0.1}
    results = {
        shared: read_result(
            play(tiny(**FASHION, partition=partition, strategy={"name": "layer_set", "shared": shared}), shared)
        )
        for shared in ("all", "body")
    }
    personalised = {shared: result.by_client("personalised").mean() for shared, result in results.items()}
    assert personalised["body"] > personalised["all"] + 0.05
    global_ = {shared: result.on_server("global").iloc[-1] for shared, result in results.items()}
    assert global_["all"] > global_["body"]


def test_the_rows_of_a_run_are_complete_and_mean_what_they_say(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(rounds=3, participation=0.5, strategy={"name": "layer_set", "shared": "head"})
    metrics = read_rows(play(config).metrics)
    assert set(metrics["round"]) == {1, 2, 3}
    per_round = metrics[metrics["round"] == 3]
    kinds = per_round.assign(client=per_round["client"].notna()).groupby(["client", "model", "split", "metric"]).size()
    # Two of four clients train, all four are evaluated, the server evaluates its own model.
    assert kinds.to_dict() == {
        (False, "global", "test", "accuracy"): 1,
        (False, "global", "test", "loss"): 1,
        (True, "global", "test", "accuracy"): 4,
        (True, "global", "test", "loss"): 4,
        (True, "personalised", "test", "accuracy"): 4,
        (True, "personalised", "test", "loss"): 4,
        (True, "personalised", "validation", "accuracy"): 4,
        (True, "personalised", "validation", "loss"): 4,
        (True, "uploaded", "train", "loss"): 2,
    }
    average = metrics.query("model == 'average'")
    assert set(average["round"]) == {2}


def test_traffic_is_that_of_the_shared_layers_by_hand(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    traffic = read_rows(play(tiny(strategy={"name": "layer_set", "shared": "head"})).communication)
    # The head is 12 x 10 weights and 10 biases of 4 bytes; nothing was averaged before round 1.
    head = (12 * 10 + 10) * 4
    assert set(traffic["layer"]) == {"fc2"}
    assert traffic.groupby("round")[["down", "up"]].sum().to_numpy().tolist() == [[0, 4 * head], [4 * head, 4 * head]]


def test_with_everything_shared_the_personalised_model_is_the_global_one(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    result = read_result(play(tiny()))
    assert result.by_client("personalised").equals(result.by_client("global"))


def test_local_training_leaves_the_global_model_as_it_was(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    result = read_result(play(tiny(strategy={"name": "local"})))
    assert result.on_server("global").nunique() == 1
    assert result.bytes_total == 0
    assert result.by_client("personalised").mean() > result.by_client("global").mean()


def test_a_client_trains_on_none_of_its_test_examples(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(partition={"scheme": "dirichlet", "alpha": 0.3, "test": 0.3, "validation": 0.1}))
    seen: list[int] = []
    for client in range(4):
        train, validation, test = federation.client_indices(client)
        assert len(test) == round(0.3 * len(federation.partition[client]))
        assert len(train) > 0
        seen += [*train, *validation, *test]
    assert sorted(seen) == list(range(200))


def test_the_barriers_of_a_run_weigh_each_client_by_its_training_examples(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(partition={"scheme": "dirichlet", "alpha": 0.2})
    federation = federation_of(config)
    sizes = [len(federation.client_indices(client)[0]) for client in range(4)]
    assert len(set(sizes)) > 1
    table = read_result(play(config)).barriers.query("group == 'fc1' and other == -1").sort_values("base")
    own = table["loss"] - table["loss_own_base"]
    mean_ends = table["loss"] - table["loss_mean_ends"]
    assert np.allclose(mean_ends, np.average(own, weights=sizes), atol=1e-12)
    assert not np.allclose(mean_ends, own.mean(), atol=1e-6)
