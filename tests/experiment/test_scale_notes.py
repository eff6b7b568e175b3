"""Numbers to predict that are far from mean 0 and deviation 1 are named before training."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.experiment.dry_run import describe_run
from fedsim.results.folder import RunFolder

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(100, 4)).astype(np.float32)
UNIT = RNG.normal(size=(100, 4))
UNIT = (UNIT - UNIT[:80].mean(0)) / UNIT[:80].std(0)  # exactly 0 and 1 over the training examples
IMAGES = np.stack([UNIT, UNIT * 4], 1).reshape(100, 2, 2, 2).astype(np.float32)
IMAGES[:, :, 0, 0] /= 100  # a pixel at the border; a channel has one scale


@pytest.fixture
def on(tmp_path: Path, tiny: Callable[..., Config]) -> Callable[..., Config]:
    def build(inputs: np.ndarray, targets: np.ndarray, **changes: Any) -> Config:
        arrays, parts = {"inputs": inputs, "targets": targets}, {"train": slice(80), "test": slice(80, None)}
        content = {f"{part}_{name}": arrays[name][at] for part, at in parts.items() for name in arrays}
        np.savez(tmp_path / "rows.npz", **content)
        data = {"name": "arrays", "path": str(tmp_path / "rows.npz"), "task": "regression"}
        return tiny(data=data, partition={"scheme": "iid"}, barriers__every=0, **changes)

    return build


@pytest.mark.parametrize(
    ("inputs", "targets", "expected"),
    [
        (INPUTS, UNIT[:, :3] * [0.2, 1, 1.9], None),
        (INPUTS, UNIT[:, :3] * [0.2, 1, 2.1] + [1, 0, 0], "target 0 is 1 ± 0.2, target 2 is -?.* ± 2.1: training may"),
        (INPUTS, UNIT[:, :3] * [0.1, 10, 10000] + 5, "target 0 is 5 ± 0.1, target 2 is 5 ± 1e"),
        (INPUTS, UNIT[:, 0] * 11 + 3, "target 0 is 3 ± 11: training may diverge with targets so far from 0 ± 1"),
        (INPUTS, UNIT[:, 0] * 0.09 + 3, "target 0 is 3 ± 0.09: "),
        (INPUTS, UNIT[:, 0] + 9, None),
        (INPUTS, UNIT[:, :2] + [0, 11], "^target 1 is 11 ± 1: "),
        (INPUTS, np.stack([UNIT[:, 0], np.full(100, 7.0)], 1), None),  # a constant has no scale
        (UNIT * 50 + 4, UNIT * 50 + 4, "± 50: "),  # an autoencoder, whose inputs are standardised
        (IMAGES, IMAGES.reshape(100, -1), None),
        (IMAGES, IMAGES.reshape(100, -1) * np.repeat([1, 100], 4), "target 0 .*, target 1 is"),
    ],
)
def test_targets_of_another_scale_are_named(
    inputs: np.ndarray, targets: np.ndarray, expected: str | None, on: Callable[..., Config]
) -> None:
    shown = describe_run(on(inputs.astype(np.float32), targets.astype(np.float32))).partition("# task")[2]
    if expected is None:
        assert "±" not in shown.partition("# training")[0]
    else:
        [line] = [line for line in shown.splitlines() if "±" in line]
        assert re.search(expected, line)


def test_a_run_warns_of_them_before_it_trains(
    on: Callable[..., Config], play: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        play(on(INPUTS, UNIT[:, 0].astype(np.float32) * 20, rounds=1, local__lr=1e-6))
    assert "target 0 is" in caplog.messages[0]
    assert caplog.messages[0].endswith("give (target - mean) / deviation, and metrics are in deviations")


def test_a_loss_of_your_own_has_its_own_scale(
    on: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scaled_loss.py").write_text(
        "def loss(outputs, targets):\n    return (outputs[:, 0] - targets).abs()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "±" not in describe_run(on(INPUTS, UNIT[:, 0].astype(np.float32) * 20, loss={"name": "scaled_loss:loss"}))
