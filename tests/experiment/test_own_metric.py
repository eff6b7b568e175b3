"""Runs with a metric of the user's own: its values, where it is shown, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.config.naming import run_name
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.verdict import verdict_of

Play = Callable[..., RunFolder]
SOURCE = """
import math
import torch

def right(targets, outputs):
    outputs.mul_(2)  # changes nothing else
    return (outputs.argmax(1) == targets).double().mean()

def both(outputs, targets, scale: float = 1.0):
    loss = torch.nn.functional.cross_entropy(outputs.double(), targets)
    return {"right": float(right(targets, outputs)), "nats": scale * loss, "often": math.nan}

def each(outputs, targets):
    return outputs.argmax(1) == targets

def text(outputs, targets):
    return "good"

def wrong(outputs, targets):
    return {}["f1"]
"""
BOTH = ["right", "nats:lower", "often"]


@pytest.fixture
def own(tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    (tmp_path / "own_metrics.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return lambda name, **changes: tiny(
        **{"rounds": 2, "metric": {"name": f"own_metrics:{name}", **changes.pop("options", {})}, **changes}
    )


def test_its_values_are_those_of_the_same_metric_of_fedsims_own_at_clients_and_server(
    own: Callable[..., Config], play: Play
) -> None:
    config = own("both", options={"gives": BOTH}, partition__validation=0.2)
    rows = read_rows(play(config).metrics)
    columns = ["round", "client", "split", "model", "metric"]  # on the server there is no client
    values = rows.fillna({"client": -1}).set_index(columns)["value"].unstack()
    values = values[values["accuracy"].notna()]
    assert (rows["metric"] == "own:right").sum() == len(values) > 20
    np.testing.assert_allclose(values["own:right"], values["accuracy"], atol=1e-12)
    np.testing.assert_allclose(values["own:nats:lower"], values["loss"], rtol=1e-6)
    assert rows[rows["metric"] == "own:often"]["value"].isna().all()


def test_it_is_compared_by_what_is_better_and_names_the_run(own: Callable[..., Config], play: Play) -> None:
    methods = ({"name": "FedAvg"}, {"name": "local"})
    options = {"gives": BOTH, "scale": 2.0}
    configs = [own("both", options=options, strategy=each, rounds=1) for each in methods]
    runs = [read_result(play(each, name)) for each, name in zip(configs, "ab", strict=True)]
    by_ours, by_loss = (verdict_of(compare(runs, Question(metric))) for metric in ("own:nats:lower", "loss"))
    assert by_ours.sentences[0].startswith("Nats, lower is better: ")
    first, second = (answer.sentences[0].partition(": ")[2].split(" ")[0] for answer in (by_ours, by_loss))
    assert first == second
    assert len({run_name(each) for each in (configs[0], own("both", options={"gives": BOTH}), own("right"))}) == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("each", {}, r"returns a Tensor of shape \(\d+,\) and not a number; return a float"),
        ("text", {}, "returns a str and not a number"),
        ("both", {}, "returns right, nats, often, not both; return a dictionary of what metric.gives names"),
        ("right", {"options": {"gives": ["a", "b"]}}, "returns a Tensor, not a, b; return a dictionary"),
        ("wrong", {}, r"KeyError: 'f1' \(own_metrics.py, line 20\)"),
        ("right", {"options": {"scale": 1}}, "unknown key 'metric.scale'"),
        ("right", {"options": {"gives": ["a:up"]}}, "gives must hold names such as top5 or brier:lower, .*'?a:up"),
        ("right", {"options": {"gives": ["a", "a:lower"]}}, "gives must hold each name once"),
        ("right", {"options": {"name": "none", "gives": ["a"]}}, "name a metric, or leave it out"),
        (
            "right",
            {"options": {"name": "auroc"}},
            r"'auroc' cannot be used: evaluation.metrics = \['auroc'\] measures it",
        ),
        (
            "right",
            {"stop__patience": 1, "stop__metric": "own:x"},
            "'own:x', which .metric. does not give; it gives own:ri",
        ),
        ("right", {"evaluation__metrics": ["own_metrics:right"]}, "name one of your own in .metric."),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_run(
    own: Callable[..., Config], name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment.prepare(own(name, **changes))
