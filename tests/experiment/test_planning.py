"""A dry run begins with a summary and is short; what it counts is what a run does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.config import Config
from fedsim.config.experiment_file import read_experiment
from fedsim.data.fingerprint import fingerprint
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.planning.duration import Earlier, timed_step
from fedsim.experiment.planning.overview import plan, runs_table, shared_parts, shared_settings, summary
from fedsim.experiment.planning.states import stages_of
from fedsim.experiment.planning.traffic import planned_traffic
from fedsim.experiment.planning.work import work_of
from fedsim.experiment.run import prepare
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.federation.federation import federation_of
from fedsim.results.reading import read_result
from fedsim.results.report.comparing.units import format_duration
from tests.conftest import TINY

SWEEP = {
    "strategy": [{"name": "full"}, {"name": "layer_set", "shared": "head"}],
    "partition.alpha": [0.3, 1.0],
    "seed": [0, 1],
}

SENDING = """
from fedsim import ClientRule, Strategy
class Rule(ClientRule):
    def finish(self, local, started):
        return super().finish(local, started)
class Sends(Strategy):
    client_rule = Rule
class Decays(ClientRule):
    def gradient(self, step, gradients):
        return gradients
class Plain(Strategy):
    client_rule = Decays
"""


def _overview(out: Path, **changes: Any) -> Any:
    return plan(read_experiment(TINY | {"barriers": {"every": 0}} | changes, name="study"), out)


def _text(overview: Any) -> str:
    return "\n".join([*summary(overview), *shared_settings(overview), *shared_parts(overview)])


def test_who_plans_only_the_first_runs_sees_files_that_change_later(tmp_path: Path) -> None:
    runs, place = name_runs(read_experiment(TINY | {"sweep": {"seed": [0, 1]}}).configs(), tmp_path), tmp_path / "a.csv"
    stages = iter(stages_of(runs))
    assert next(stages).kind == "new"
    place.write_text("1")
    before = fingerprint(place)
    place.write_text("2")
    assert fingerprint(place) != before


def test_a_sweep_is_a_summary_its_shared_settings_once_and_a_row_for_each_run(tmp_path: Path) -> None:
    overview = _overview(tmp_path, sweep=SWEEP)
    text = _text(overview)
    assert text.startswith(f"study: 8 runs of 2 rounds, in {tmp_path / 'study'}\n  runs       8 new\n")
    assert re.search(r"^  time       about .* by timed steps of one client, a rough guess$", text, re.MULTILINE)
    assert text.count("local.lr = 0.1\n") == 1
    assert "alpha" not in text.partition("# ")[0]
    table = runs_table(overview)
    assert table.headings[:3] == ("strategy", "partition.alpha", "seed")
    assert len({row[:3] for row in table.rows}) == len(table.rows) == 8
    assert {row[3] for row in table.rows} == {"new"}
    assert "# different by run: clients, traffic, evaluation (--verbose)" in text
    assert len(text.splitlines()) < 50
    assert not list(tmp_path.iterdir())


def test_a_long_list_of_layers_loses_its_end(tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [4] * 60}
    overview = _overview(tmp_path, model=model, sweep={"seed": [0, 1]})
    [line] = [line for line in shared_parts(overview) if " clients send " in line]
    shown, _, more = line.partition(": ")[2].rpartition(": ")[2].partition(" and ")
    names = shown.split(", ")
    assert names == [f"fc{number}" for number in range(1, len(names) + 1)]
    assert more == f"{61 - len(names)} more (--verbose)"
    assert len(line) < 300


def test_bytes_and_examples_are_those_of_the_run(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(rounds=3, participation=0.5, local={"epochs": 2, "lr": 0.1}, barriers={"every": 0})
    [run] = name_runs([config], tmp_path)
    assert run_all([run], 1) == {}
    federation, strategy = prepare(config)
    result, work = read_result(run.folder), work_of(federation, strategy, planned_traffic(federation, strategy))
    sent = result.communication[["up", "down"]].sum()
    assert (work.up, work.down) == (sent["up"], sent["down"])
    rows = result.metrics
    assert work.examples == rows[rows["metric"] == "backward_examples"]["value"].sum()


@pytest.mark.parametrize(
    ("method", "rough", "reason"),
    [
        ({"name": "full"}, "", ""),
        ({"name": "drift_gated", "share": 0.5}, "at most ", "which layers drift far enough to be sent"),
        ({"name": "fedluar", "recycled": 0.5}, "about ", "which layers repeat their last update"),
        ({"name": "sending:Sends"}, "", "sets that a custom method sends, if any"),
        ({"name": "sending:Plain"}, "", ""),
        ({"name": "barrier_gated"}, "about ", "which layers close, and what it takes to measure them"),
    ],
)
def test_the_summary_says_where_bytes_follow_from_training(
    method: dict[str, Any], rough: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sending.py").write_text(SENDING)
    monkeypatch.syspath_prepend(tmp_path)
    overview = _overview(tmp_path, strategy=method)
    [line] = [line for line in summary(overview) if line.startswith("  bytes")]
    assert re.fullmatch(rf"  bytes      {rough}[\d.]+ [kM]?B up, [\d.]+ [kM]?B down(?P<open>.*)", line)
    assert line.partition(" down")[2] == (f"; not known before the run: {reason}" if reason else "")
    assert [cell.startswith(rough) and cell[len(rough)].isdigit() for cell in runs_table(overview).rows[0][5:7]] == [
        True,
        True,
    ]
    both = _overview(tmp_path, sweep={"strategy": [{"name": "full"}, method]} if reason else {"seed": [0, 1]})
    assert (" in 1 of 2 runs: " in "\n".join(summary(both))) == bool(reason)


def test_what_is_done_already_is_counted_and_times_the_rest(tmp_path: Path) -> None:
    settings = TINY | {"barriers": {"every": 0}}
    one = read_experiment(settings, name="study")
    runs = name_runs(one.configs(), tmp_path / "study")
    assert run_all(runs, 1) == {}
    overview = _overview(tmp_path, sweep={"seed": [settings.get("seed", 0), 7]})
    text = _text(overview)
    assert "  runs       1 done, 1 new\n" in text
    assert re.search(r"time       about .*, by 2 rounds of earlier runs\n", text)
    assert [row[2] for row in runs_table(overview).rows] == ["done", "new"]
    longer = _overview(tmp_path, rounds=3)
    assert "  runs       1 continued\n" in _text(longer)
    done = _text(_overview(tmp_path))
    assert "time       none, all runs are done" in done
    seconds, count = Earlier(tmp_path / "study").seconds_of_round(one.configs()[0])
    assert (count, seconds) == (2, pytest.approx(read_result(runs[0].folder).seconds_total / 2))


def test_runs_of_tuning_are_counted_and_timed(tmp_path: Path) -> None:
    text = _text(_overview(tmp_path, tune={"local.lr": [0.1, 0.2, 0.3], "rounds": 1}))
    assert "  tuning     3 runs of 1 rounds before these; " in text


def test_a_timed_step_leaves_no_trace(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(local={"lr": 0.1, "schedule": "cosine", "warmup": 2, "momentum": 0.9}))
    before = {key: value.clone() for key, value in federation.initial.items()}
    state = torch.get_rng_state()
    assert 0 < timed_step(federation) < 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in federation.initial.items())


def test_rounds_of_faults_after_the_last_one_are_named(tiny: Callable[..., Config]) -> None:
    text = describe_run(tiny(rounds=3, faults={"drop_out": 0.5, "rounds": [2, 4, 9]}))
    assert "rounds of faults.rounds after the last round, 3, in which nothing happens: 4, 9\n" in text
    text = describe_run(tiny(rounds=3, faults={"drop_out": 0.5, "rounds": [4]}))
    assert "in which nothing happens: 4; no fault is injected\n" in text
    assert "after the last round" not in describe_run(tiny(rounds=3, faults={"drop_out": 0.5, "rounds": [3]}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.04 s"),
        (1.2, "1 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (3600, "60 min"),
        (5400, "1.5 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
