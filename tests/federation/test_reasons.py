"""A client that fails says why in one line: the user's line, and the remedy where there is a known one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsim.config import Config
from fedsim.errors import ClientError, RunError
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.federation.client.reasons import is_expected, reason_of
from fedsim.results.folder import RunFolder
from fedsim.strategy.faults import all_failed, by_kind, count_kinds, kind_of, name_clients, warn_of

MODEL = """
import sys
import torch

class Net(torch.nn.Module):
    def __init__(self, shape, classes, how):
        super().__init__()
        self.how, self.body, self.head = how, torch.nn.Linear(64, 5), torch.nn.Linear(5, classes)

    def forward(self, inputs):
        if self.training and len(inputs) > 2:  # which a trial before the run does not find
            self.fail(len(inputs))
        return self.head(self.body(inputs.flatten(1)))

    def fail(self, n):
        if self.how == "exit":
            sys.exit("no licence")
        if self.how == "every" or n == 7:
            raise KeyError(f"{n} of\\nthem")  # here
"""


def caught(function: Callable[[], object]) -> BaseException:
    with pytest.raises((Exception, SystemExit)) as found:
        function()
    return found.value


@pytest.mark.parametrize(
    ("function", "says", "remedy"),
    [
        (
            lambda: torch.empty(10**15),
            "not enough memory for 4,0",
            "; fewer engine.workers, engine.cohort = 1 or a smaller",
        ),
        (lambda: torch.nn.BatchNorm1d(3)(torch.ones(1, 3)), "Expected more than 1 value", "another local.batch_size"),
        (lambda: sys.exit("no licence"), "SystemExit: no licence (test_reasons.py, line ", ")"),
        (lambda: {}["label"], "KeyError: 'label' (test_reasons.py, line ", ")"),
    ],
)
def test_a_reason_has_the_place_and_the_remedy(function: Callable[[], object], says: str, remedy: str) -> None:
    error = caught(function)
    reason = reason_of(error)
    assert says in reason
    assert remedy in reason
    assert "\n" not in reason
    assert not is_expected(error)
    assert kind_of(reason).startswith(f"{type(error).__name__} in test_reasons.py, line ")


def test_a_reason_that_says_all_has_no_place() -> None:
    assert reason_of(ClientError("its update is not finite; a lower local.lr may help")).startswith("its update")


def test_reasons_of_one_kind_are_told_together(caplog: pytest.LogCaptureFixture) -> None:
    reasons = {
        7: "ValueError: 7 (a: b) (model.py, line 12); fewer workers help",
        3: "ValueError: 3 (model.py, line 12)",
        1: "ValueError: 3 (model.py, line 13)",
        2: "its update is not finite; a lower local.lr may help",
        4: "fc1.weight has values that are not finite",
        5: "it timed out after 5 s",
    }
    assert count_kinds(reasons.values()) == (
        "ValueError in model.py, line 12 (2), not finite (2), ValueError in model.py, line 13 (1), "
        "it timed out after 5 s (1)"
    )
    assert [clients for clients, _ in by_kind(reasons)] == [[1], [2, 4], [3, 7], [5]]
    warn_of(9, {3: reasons[3], 7: reasons[7], 1: reasons[1]})
    assert caplog.messages == [
        "round 9: client 1 is left out of the average: ValueError: 3 (model.py, line 13)",
        "round 9: clients 3 and 7 are left out of the average; client 3: ValueError: 3 (model.py, line 12)",
    ]
    assert all_failed({3: reasons[3], 7: reasons[7]}) == f"client 3: {reasons[3]}"
    assert (
        all_failed({3: reasons[3], 5: reasons[5]}) == "ValueError in model.py, line 12 (1), it timed out after 5 s (1)"
    )
    assert name_clients(list(range(10))) == "clients 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9"
    assert name_clients(list(range(20))) == "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 10 more"


@pytest.fixture
def play_model(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[RunFolder, str]]:
    """Run a user's model that fails in some way; return the folder, and the message of a run that failed."""

    def run(how: str) -> tuple[RunFolder, str]:
        (tmp_path / "failing_model.py").write_text(MODEL)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "failing_model", raising=False)
        config = tiny(model={"name": "failing_model:Net", "how": how}, barriers={"every": 0})
        [each] = name_runs([config], tmp_path / "runs")
        failures = run_all([each], 1)
        return each.folder, failures[each.name].message if failures else ""

    return run


@pytest.mark.parametrize(
    ("how", "what"), [("every", r"KeyError: '\d+ of\\nthem' \(failing_model.py"), ("exit", "SystemExit: no licence")]
)
def test_an_error_at_every_client_ends_the_run_in_its_first_round(
    how: str, what: str, play_model: Callable[[str], tuple[RunFolder, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, message = play_model(how)
    with pytest.raises(RunError, match=rf"^round 1: no client sent a valid update; client 0: {what}"):
        raise RunError(message)
    assert "WARNING" not in capsys.readouterr().err  # the error says it
    faults = [json.loads(line) for line in folder.faults.open()]
    assert [(row["round"], row["client"], row["stage"]) for row in faults] == [(1, k, "train") for k in range(4)]
    assert folder.log.read_text().count("Traceback") == 1


@pytest.mark.slow
def test_an_error_at_one_client_is_told_in_every_place_and_its_traceback_once(
    play_model: Callable[[str], tuple[RunFolder, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, message = play_model("one")
    assert message == ""
    line = next(n for n, text in enumerate(MODEL.splitlines(), 1) if text.endswith("# here"))
    faults = [json.loads(text) for text in folder.faults.open()]
    failed = {row["client"] for row in faults}
    assert len(failed) == 1
    said = capsys.readouterr().err
    kind = f"KeyError in failing_model.py, line {line} (2)"
    assert f"WARNING FedAvg seed 0: 2 of 8 updates left out: {kind}\n" in said
    assert said.count(f"client {min(failed)} is left out of the average: KeyError: '7 of\\nthem'") == 2
    assert f"2 of 8 updates left out: {kind}" in folder.report.read_text()
    assert folder.log.read_text().count("Traceback") == 1
