"""The dry run of a long experiment takes no longer than that of a short one."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.measuring import evaluation_cost
from fedsim.experiment.planning import traffic
from partitions import Partition


def test_a_million_rounds_are_described_at_once(tiny: Callable[..., Config]) -> None:
    text = describe_run(tiny(rounds=10**6, strategy={"name": "layer_cycle"}, barriers={"every": 0}))
    assert "bytes down, as in rounds 2 to 10,000 on average" in text
    assert text.count("clients send") == 100
    assert "and 9,900 more changes" in text


def test_sizes_of_all_clients_are_not_computed_for_each_client(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    monkeypatch.setattr(Partition, "sizes", property(lambda self: computed.append(self) or np.diff(self.offsets)))
    counts = []
    for clients in (4, 8):
        models = {"models": ["personalised", "global", "trained"]}
        config = tiny(clients=clients, participation=4 / clients, evaluation=models)
        describe_run(config)  # data and split are made only once
        computed.clear()
        describe_run(config)
        counts.append(len(computed))
    assert counts[0] == counts[1]


def test_counts_of_the_first_rounds_stand_for_all(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(rounds=40, participation=0.5, evaluation={"models": ["personalised", "global", "trained"]})
    exact = describe_run(config)
    monkeypatch.setattr(traffic, "COUNTED", 2 * 20)
    monkeypatch.setattr(evaluation_cost, "COUNTED", 20)
    about = describe_run(config)
    assert (
        re.search(r"in all rounds: about ([\d,]+) bytes up, [\d,]+ bytes down, as in rounds 2 to 20 on average", about)[
            1
        ]
        == (re.search(r"in all rounds: ([\d,]+) bytes up", exact)[1])
    )
    passes = [int(re.search(r"at most ([\d,]+) forward", text)[1].replace(",", "")) for text in (exact, about)]
    assert passes[0] == pytest.approx(passes[1], rel=0.2)


def test_where_all_clients_train_two_rounds_tell_the_bytes_of_all(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, line = tiny(rounds=40), r"in all rounds: (?:about )?([\d,]+) bytes up, ([\d,]+) bytes down"
    exact = re.search(line, describe_run(config)).groups()
    monkeypatch.setattr(traffic, "COUNTED", 1)
    about = describe_run(config)
    assert "bytes down, as in round 2" in about
    assert re.search(line, about).groups() == exact


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (np.arange(60 * 8 * 3.0).reshape(60, 8, 3) % 7, {}, "8 x 3, normalised per channel (8)"),
        (np.arange(60 * 8 * 3.0).reshape(60, 8, 3) % 7, {"channels": "last"}, "3 x 8, normalised per channel (3)"),
        (np.arange(60 * 5.0).reshape(60, 5) % 7, {}, "5, normalised per feature (5)"),  # of float64, once and for all
        (np.arange(60 * 5).reshape(60, 5) % 7, {}, "5, tokens, of 7 different ones"),
    ],
)
def test_the_shape_of_inputs_and_what_is_normalised_are_shown(
    values: np.ndarray, options: dict[str, str], expected: str, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    labels = np.arange(60) % 2
    np.savez(tmp_path / "a.npz", train_inputs=values, train_targets=labels, test_inputs=values, test_targets=labels)
    model = {"name": "text-cnn" if values.dtype == np.int64 else "mlp"}
    data = {"name": "arrays", "path": str(tmp_path / "a.npz"), **options}
    shown = describe_run(tiny(data=data, partition={"scheme": "iid"}, model=model, barriers__every=0))
    assert f"\ninputs: {expected}\n" in shown
