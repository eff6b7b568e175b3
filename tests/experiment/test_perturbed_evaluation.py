"""The server's models on perturbed test data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch.nn.functional import cross_entropy

from fedsim.config import Config
from fedsim.config.expectation import Expectation
from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.measuring.evaluation_cost import evaluation_cost
from fedsim.experiment.run import prepare
from fedsim.federation.federation import federation_of
from fedsim.models.params import load_state_
from fedsim.results.check.check import check
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result
from fedsim.results.report.pages.evaluation import evaluation_table
from tests.conftest import run_files

PERTURBED = ["fgsm:0.3", "noise:0.2", "fgsm:1e-9", "noise:20"]


@pytest.fixture
def perturbed(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> RunFolder:
    """Play two rounds, the second with barriers and so with the average's rows."""
    return play(tiny(evaluation={"perturbed": PERTURBED}), "perturbed")


def test_the_servers_models_are_measured_under_each_perturbation_and_nothing_else_changes(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], perturbed: RunFolder
) -> None:
    rows, plain = read_rows(perturbed.metrics), play(tiny(), "plain")
    own = rows["split"].isin(PERTURBED)
    pd.testing.assert_frame_equal(rows[~own].reset_index(drop=True), read_rows(plain.metrics))
    assert rows[own]["client"].isna().all()
    assert set(rows[own]["n"]) == {60}
    counts = rows[own].groupby(["model", "round"])["split"].apply(lambda split: sorted(split))
    each = sorted(2 * PERTURBED)  # loss and accuracy
    assert counts.to_dict() == {("average", 2): each, ("global", 1): each, ("global", 2): each}
    shown, before = evaluation_table(read_result(perturbed)).rows, evaluation_table(read_result(plain)).rows
    assert [row for row in shown if row in before] == list(before)
    accuracies = rows[own & (rows["round"] == 2) & (rows["model"] == "global") & (rows["metric"] == "accuracy")]
    written = {row[1]: row[-3] for row in shown if row not in before}
    expected = accuracies.set_index("split")["value"]
    assert written == {f"server's test data, {split}": f"{100 * expected[split]:.1f}" for split in PERTURBED}


def test_what_the_gradient_moves_is_what_one_would_write_down(
    tiny: Callable[..., Config], perturbed: RunFolder
) -> None:
    federation = federation_of(tiny())
    model = federation.model().eval()
    load_state_(model, Checkpoints(perturbed.checkpoints).global_model(2))
    inputs, targets = federation.data.test()
    moved = inputs.clone().requires_grad_()
    cross_entropy(model(moved), targets).backward()
    assert moved.grad is not None
    logits = model(inputs + 0.3 * moved.grad.sign()).detach()
    of = read_result(perturbed).of
    found = {metric: of("global", metric, "fgsm:0.3", server=True)["value"].iloc[-1] for metric in ("loss", "accuracy")}
    assert found["loss"] == pytest.approx(float(cross_entropy(logits, targets)), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == targets).double().mean()), abs=1e-9)


def test_a_small_move_changes_nothing_and_much_noise_leaves_chance(perturbed: RunFolder) -> None:
    def last(split: str, metric: str) -> float:
        return float(read_result(perturbed).of("global", metric, split, server=True)["value"].iloc[-1])

    assert last("fgsm:1e-9", "loss") == pytest.approx(last("test", "loss"), rel=1e-5)
    assert last("fgsm:0.3", "loss") > last("test", "loss") + 0.1
    assert last("noise:20", "loss") > 2 * last("noise:0.2", "loss")
    assert last("noise:0.2", "loss") == pytest.approx(last("test", "loss"), rel=0.1)


def test_threads_change_no_byte(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], perturbed: RunFolder
) -> None:
    threads = play(tiny(evaluation={"perturbed": PERTURBED}, engine__workers=3), "threads")
    assert run_files(threads) == run_files(perturbed)


def test_an_expectation_can_name_a_perturbation(perturbed: RunFolder) -> None:
    expected: dict[str, Any] = {"metric": "loss", "model": "global", "server": True, "split": "fgsm:0.3", "above": 0.1}
    [found] = check([read_result(perturbed)], [Expectation(**expected, of={"split": "test"})], means=True)
    of = read_result(perturbed).of
    losses = [of("global", "loss", split, server=True)["value"].iloc[-1] for split in ("fgsm:0.3", "test")]
    assert found.value == pytest.approx(losses[0] - losses[1])
    assert found.verdict == "ok"
    assert found.expectation.what() == (
        "mean global loss on the server on fgsm:0.3 data, round last, minus that of split = test"
    )
    with pytest.raises(ConfigError, match="has no mean global loss on the server on fgsm:9 data"):
        list(check([read_result(perturbed)], [Expectation(**{**expected, "split": "fgsm:9"})]))


def test_the_work_counts_a_pass_for_each_size_and_one_for_gradients(tiny: Callable[..., Config]) -> None:
    for names, passes in (([], 1), (["noise:1", "noise:2"], 3), (["fgsm:1", "noise:1", "fgsm:2"], 5)):
        federation = federation_of(tiny(evaluation={"perturbed": names}))
        assert evaluation_cost(federation).server_passes == 2 * 60 * passes


@pytest.mark.parametrize(
    "names", [["blur:0.1"], ["fgsm"], ["noise:"], ["fgsm:0"], ["fgsm:-1"], ["noise:1e"], ["noise:1e999"], ["fgsm:nan"]]
)
def test_what_is_no_perturbation_is_named(tiny: Callable[..., Config], names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.perturbed = .* greater than 0, such as .* is neither$"):
        tiny(evaluation={"perturbed": names})
    with pytest.raises(ConfigError, match="must hold each perturbation once"):
        tiny(evaluation={"perturbed": ["fgsm:0.1", "fgsm:1e-1"]})


def test_tokens_cannot_be_moved(tiny: Callable[..., Config], tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, n in (("train", 60), ("test", 6)):
        parts[f"{part}_inputs"] = stream.integers(5, size=(n, 4))
        parts[f"{part}_targets"] = stream.integers(2, size=n)
    np.savez(tmp_path / "tokens.npz", **parts)
    settings: dict[str, Any] = {
        "data": {"name": "arrays", "path": str(tmp_path / "tokens.npz")},
        "model": {"name": "gpt", "depth": 1, "width": 4, "heads": 1, "predict": "last"},
        "partition": {"scheme": "iid"},
    }
    prepare(tiny(**settings))
    with pytest.raises(
        ConfigError, match=r"evaluation.perturbed = \['fgsm:0.1'\] perturbs inputs, but .* are tokens"
    ) as error:
        prepare(tiny(**settings, evaluation={"perturbed": ["fgsm:0.1"]}))
    assert "\n" not in str(error.value)
