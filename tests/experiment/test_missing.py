"""A model that is not finite has no loss and no accuracy, and whatever is made of those says how many are missing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fedsim.cli.terminal import print_table
from fedsim.config import Config
from fedsim.config.expectation import Expectation
from fedsim.errors import DivergedError
from fedsim.experiment import api
from fedsim.experiment.measuring.wanted import client_barriers
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.experiment.tuning import tune
from fedsim.experiment.tuning.grid import tunings_of
from fedsim.federation.client import app as client_module
from fedsim.federation.federation import federation_of
from fedsim.federation.participants import participants
from fedsim.models.layers import LayerGroup
from fedsim.results import report
from fedsim.results.check.check import check
from fedsim.results.folder import RunFolder
from fedsim.results.report.comparing.export import as_latex, as_markdown
from fedsim.results.report.pages.analysis import analysis_sections
from fedsim.strategy import Measurable, bounds_of
from fedsim.training import Training

LOST = 2  # the client whose body is no number after training
MODELS = ["personalised", "global", "trained"]
Diverge = Callable[..., None]


@pytest.fixture
def diverge(monkeypatch: pytest.MonkeyPatch) -> Diverge:
    """Let the bodies of some clients be no numbers from their first training on."""

    def patch(config: Config, *clients: int, entries: str = "fc1", value: float = math.nan) -> None:
        data = federation_of(config).data
        lost = {data.client(client).train[0].sum().item() for client in clients}
        alone, together = client_module.train_, client_module.train_cohort

        def train(model: torch.nn.Module, inputs: torch.Tensor, *rest: Any, **options: Any) -> Training:
            training = alone(model, inputs, *rest, **options)
            if inputs.sum().item() in lost:
                for key, entry in model.state_dict().items():
                    if key.startswith(entries):
                        entry.fill_(value)
            return training

        def train_all(model: torch.nn.Module, tasks: Any, *rest: Any) -> Any:
            for task, (params, training) in zip(tasks, together(model, tasks, *rest), strict=True):
                spoilt = task.inputs.sum().item() in lost
                yield (
                    {
                        k: torch.full_like(v, value) if spoilt and k.startswith(entries) else v
                        for k, v in params.items()
                    },
                    training,
                )

        monkeypatch.setattr(client_module, "train_", train)
        monkeypatch.setattr(client_module, "train_cohort", lambda *given: list(train_all(*given)))

    return patch


def head_shared(tiny: Callable[..., Config], **changes: Any) -> Config:
    """Return a run whose clients keep their bodies."""
    settings = {"partition": {"scheme": "iid", "validation": 0.1}, "strategy": {"name": "layer_set", "shared": "head"}}
    return tiny(**settings | changes)


@pytest.mark.parametrize("cohort", [1, 4])
def test_a_client_whose_personal_layers_diverge_is_named_and_its_values_are_missing(
    cohort: int,
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    diverge: Diverge,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = head_shared(tiny, engine={"cohort": cohort, "workers": 1}, rounds=1)
    diverge(config, LOST)
    folder = play(config)
    rows = pd.DataFrame([json.loads(line, parse_constant=pytest.fail) for line in folder.metrics.open()])
    of_client = rows[rows["client"].notna() & (rows["split"] != "train")]
    missing = of_client[of_client["value"].isna()]
    assert set(missing["client"]) == {LOST}
    assert set(missing["model"]) == {"personalised"}  # the global model is not touched
    assert set(missing["metric"]) == {"loss", "accuracy"}
    reason = "its personal layers fc1 are not finite"
    assert f"round 1: client {LOST} has diverged: {reason}" in caplog.messages
    assert f"round 1: client {LOST} has no finite loss: {reason}" in caplog.messages
    [run] = api.load(folder.path)
    assert run.faults[["client", "stage", "kind"]].to_numpy().tolist() == [
        [LOST, "personal", "not finite"],
        [LOST, "evaluate", "not finite"],
    ]
    assert "(1 missing) after round 1" in repr(run)


@pytest.mark.slow
def test_means_over_clients_say_how_many_are_missing_and_pass_over_none(
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    diverge: Diverge,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = head_shared(tiny, rounds=1)
    diverge(config, LOST)
    folder = play(config)
    [run] = api.load(folder.path)
    own = run.by_client("personalised")
    others = own.drop(LOST).to_numpy(dtype=float)
    assert math.isnan(own[LOST])
    assert run.mean_by_round().isna().all()
    assert run.best_round() is None
    compared = api.compare([run], columns="all")
    row = compared.table.iloc[0]
    assert (row["personalised"], row["personalised_missing"]) == (pytest.approx(others.mean()), 1)
    assert (row["std"], row["worst"]) == (pytest.approx(others.std()), pytest.approx(others.min()))
    assert "global_missing" not in compared.table
    shown = f"{100 * others.mean():.1f} (1 missing)"
    notes = ("1 client evaluation without values: not finite (1)", f"personal layers of client {LOST} not finite")
    assert compared.text.notes == notes
    print_table(compared.text)
    assert capsys.readouterr().out.endswith("".join(f" {note}\n" for note in notes))
    for text in (repr(compared), as_latex(compared.text), as_markdown(compared.text), compared._repr_html_()):
        assert shown in text
        assert all(note in text for note in notes)
    page = report.write_run(run, folder.path).read_text()
    assert "Missing: 1 client without a finite loss or not evaluated." in page
    assert f"{others.mean():.1%} ± {others.std():.1%} (1 missing)" in page
    # The best round is one in which no value is missing, and there is none.
    best = api.compare([run], at="best")
    assert math.isnan(best.table["personalised"][0])
    assert best.text.notes == (*notes, "no best round: none has a validation accuracy of every client")
    wanted = Expectation.model_validate({"metric": "accuracy", "above": 0.0})
    [checked] = check([run], [wanted])
    assert checked.verdict == "FAILED"


def test_a_run_in_which_every_loss_is_missing_fails_at_once(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], diverge: Diverge, tmp_path: Path
) -> None:
    config = head_shared(tiny)
    diverge(config, *range(4))
    with pytest.raises(DivergedError, match=r"^round 1: no client's own model has a finite loss; a lower local.lr"):
        play(config)
    rows = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.open()]
    assert {row["round"] for row in rows} == {1}
    [failure] = run_all(name_runs([config], tmp_path), 1).values()
    assert failure.diverged
    assert not failure.trace


def test_stopping_and_the_best_round_need_a_value_of_every_client(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], diverge: Diverge
) -> None:
    config = head_shared(tiny, rounds=5, stop={"patience": 2}, barriers={"every": 0}, participation=0.5, seed=1)
    first = min(
        server_round
        for server_round, clients in enumerate((participants(config, each) for each in range(1, 6)), start=1)
        if LOST in clients
    )
    assert 1 < first < 4
    diverge(config, LOST)
    [run] = api.load(play(config).path)
    means = run.mean_by_round(split="validation")
    assert means.isna().tolist() == [server_round >= first for server_round in means.index]
    assert run.best_round() == int(means.idxmax())
    assert run.evaluated == run.best_round() + 2  # rounds with missing values are not better


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_gains_over_a_baseline_count_the_clients_without_a_pair(
    metric: Any, tiny: Callable[..., Config], play: Callable[..., RunFolder], diverge: Diverge
) -> None:
    whole = play(head_shared(tiny, rounds=1, strategy={"name": "full"}, barriers={"every": 0}), "whole")
    config = head_shared(tiny, rounds=1, barriers={"every": 0})
    diverge(config, LOST)
    runs = api.load([whole.path, play(config, "spoilt").path])
    compared = api.compare(runs, metric=metric, baseline="full")
    row = compared.table.set_index("strategy").loc["layer_set(shared=head)"]
    pairs = (runs[1].by_client("personalised", metric) - runs[0].by_client("personalised", metric)).dropna()
    assert len(pairs) == 3
    assert (row["difference"], row["difference_missing"], row["gain_baseline_missing"]) == (
        pytest.approx(pairs.mean()),
        1,
        1,
    )
    assert compared.text.notes[0].startswith("LG-FedAvg: 1 client evaluation without values")


def test_a_value_of_the_grid_loses_if_a_client_diverges_with_it(
    tiny: Callable[..., Config], diverge: Diverge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = head_shared(tiny, rounds=1, barriers={"every": 0}, tune={"local.lr": [0.2, 0.1]})
    diverge(config, LOST)
    spoilt, rates = client_module.train_, []

    def train(*given: Any, settings: Any, **options: Any) -> Any:
        rates.append(settings.lr)
        return (spoilt if settings.lr == 0.2 else trained)(*given, settings=settings, **options)

    monkeypatch.undo()
    trained = client_module.train_
    monkeypatch.setattr(client_module, "train_", train)
    tuned = tune.tune(tunings_of(config, "study"), tmp_path, "study", jobs=1)
    assert set(rates) == {0.1, 0.2}
    assert [each.local.lr for each in tuned.configs] == [0.1]
    assert tuned.notes[0].endswith(": the last round has no accuracy of 1 client with local.lr = 0.2")


def test_a_client_of_a_cohort_whose_update_is_not_finite_leaves_its_neighbours_alone(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], diverge: Diverge
) -> None:
    config = head_shared(tiny, engine={"cohort": 4, "workers": 1}, rounds=1, evaluation={"models": MODELS})
    whole = play(config, "whole")
    diverge(config, LOST, entries="fc")
    folder = play(config, "spoilt")
    rows = [[json.loads(line) for line in each.metrics.open()] for each in (folder, whole)]
    uploaded, expected = ([row for row in some if row["model"] in ("uploaded", "trained")] for some in rows)
    assert uploaded == [row for row in expected if row["client"] != LOST]
    assert "cohort;" not in folder.log.read_text()
    [run] = api.load(folder.path)
    assert run.faults[["client", "stage", "kind"]].to_numpy().tolist() == [[LOST, "train", "not finite"]]


@pytest.mark.slow
def test_runs_are_compared_with_one_that_has_no_value_at_all(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], diverge: Diverge, tmp_path: Path
) -> None:
    whole = play(head_shared(tiny, rounds=1, barriers={"every": 0}, strategy={"name": "full"}), "whole")
    config = head_shared(tiny, barriers={"every": 0})
    diverge(config, *range(4))
    with pytest.raises(DivergedError):
        play(config, "lost")
    runs = api.load([whole.path, tmp_path / "lost"])
    for at, cell in (("last", "- (4 missing)"), ("best", "-")):
        table = api.compare(runs, at=at, baseline="full", unfinished=True).text
        assert [row[table.headings.index("personalised")] for row in table.rows][1] == cell
    assert report.write_comparison(runs, tmp_path).exists()


@pytest.mark.slow
def test_a_page_says_how_many_barriers_are_missing(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], diverge: Diverge, caplog: pytest.LogCaptureFixture
) -> None:
    config = head_shared(tiny, rounds=1, barriers={"every": 1, "pairs": 2, "examples": 40})
    diverge(config, LOST, value=3e38)  # finite, unlike what comes of it
    folder = play(config)
    [run] = api.load(folder.path)
    missing, rows = int(run.barriers["loss"].isna().sum()), len(run.barriers)
    assert 0 < missing < rows
    assert f"client {LOST} has no finite loss: the loss of personalised is not finite" in caplog.text
    assert "the average model has no finite loss on the server's test data" in caplog.text
    [text] = [section.text for section in analysis_sections(run) if section.name == "barriers-loss"]
    assert f"Missing: {missing} of {rows} values, of models whose loss or outputs are not finite" in text


def test_a_barrier_that_is_not_finite_has_infinite_bounds_and_one_without_clients_unknown_ones() -> None:
    table = pd.DataFrame({"layer": ["a", "a", "b", "b"], "barrier": [0.1, 0.2, 0.1, math.nan], "weight": 1.0})
    table = table.assign(client=[0, 1, 0, 1], n=5)
    gate = Measurable("clients", LayerGroup("all", ("a", "b", "c")), 10)
    found = {name: bounds_of(own, 0.5) for name, own in client_barriers(table, gate).items()}
    assert found["a"] == pytest.approx((0.15, 0.15, 0.15))
    assert found["b"] == (math.inf, math.inf, math.inf)
    assert found["c"] == pytest.approx((-math.inf, math.nan, math.inf), nan_ok=True)
