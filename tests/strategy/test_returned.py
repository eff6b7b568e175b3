"""A hook of a custom method that returns something else than it must is named, with what it must return."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import ConfigError, RunError
from tests.strategies.harness import Play

PLAIN = """
from torch import zeros
from fedsim.strategy import ClientRule, Finished, LocalPlan, Phase, Strategy
class Rule(ClientRule):
    {}
class Own(Strategy):
    client_rule = Rule
    {}
"""
# On the client: what is written in the rule, and how the reason begins.
RULE = {
    "def start(self, local): return local.params": "Rule.start returns a dict; return a client, as",
    "def start(self, local): return type(local)(**vars(local) | {'sets': {'x': 0}})": "Rule.start: sets['x'] is an int",
    "def loss(self, step): return 3.0": "Rule.loss returns a float; return a tensor with one value",
    "def loss(self, step): return step.logits(step.params)": "Rule.loss returns the shape (3, 3); return a tensor",
    "def loss(self, step): return zeros(())": "Rule.loss returns a loss without a gradient, as torch.no_grad, detach",
    "def loss(self, step): return step.logits(step.params).sum().detach()": "Rule.loss returns a loss without a grad",
    "def gradient(self, step, gradients): return {**gradients, 'x': zeros(1)}": (
        "Rule.gradient returns 'x', which this phase does not train; return one for each gradient"
    ),
    "def gradient(self, step, gradients): pass": "Rule.gradient returns None; return a dict of tensors",
    "def gradient(self, step, gradients): return {}": "Rule.gradient returns no 'fc1.weight'; return one for each",
    "def gradient(self, step, gradients): return {k: zeros(1) for k in gradients}": (
        "Rule.gradient returns 'fc1.weight' of the shape (1,), not (6, 4)"
    ),
    "def finish(self, local, started): pass": "Rule.finish returns None; return Finished(local.params, ...)",
    "def finish(self, local, started): return Finished({})": "Rule.finish returns no 'fc1.weight'; return all entries",
    "def finish(self, local, started): return Finished(local.params, kept={'x': zeros(1)})": (
        "Rule.finish: kept['x'] is a Tensor; it must be a dict of tensors"
    ),
    "def finish(self, local, started): return Finished(local.params, sent={'x': {'y': 1}})": (
        "Rule.finish: sent['x'] is a dict with an int as 'y'"
    ),
    "def finish(self, local, started): return Finished(local.params, sent={'x': {0: zeros(1)}})": (
        "Rule.finish: sent['x'] is a dict with the key 0"
    ),
    "def finish(self, local, started): return Finished(local.params, metrics={'x': zeros(1)})": (
        "Rule.finish: metrics['x'] is a Tensor; it must be a number, as float(...) gives"
    ),
}
SERVER = {
    "def for_client(self, server_round, client): pass": "Own.for_client returns a NoneType; it must be a dict of",
    "def for_client(self, server_round, client): return {'fc9': zeros(1)}": "Own.for_client returns 'fc9', which is no",
    "def for_client(self, server_round, client): return {'fc1.bias': zeros(1)}": (
        "Own.for_client returns 'fc1.bias' that is not a tensor of shape (6,)"
    ),
    "def sets_for(self, server_round, client): return [1]": "Own.sets_for returns a list; it must be a dict of",
    "def sets_for(self, server_round, client): return {'x': zeros(1)}": "returns a Tensor as the set 'x'; it must be",
    "def sets_for(self, server_round, client): return {'model': {}}": "a set 'model', which messages use already; give",
}
PLANS = {
    "Phase('head')": "local_plan(1) returns a Phase; it must be a LocalPlan, such as LocalPlan((Phase('head')",
    "LocalPlan(Phase('head'))": "phases = Phase(trainable='head'",
}


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)


def own(folder: Path, name: str, rule: str = "pass", server: str = "pass", **settings: Any) -> Play:
    """Write a method into a module of its own, as modules are imported once, and return a play of it."""
    module = f"returned_{name}"
    (folder / f"{module}.py").write_text(PLAIN.format(rule, server))
    return Play(f"{module}:Own", sizes=(3, 3), absent={}, **settings)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("cohort", [1, 2])
def test_a_hook_on_the_client_is_named(tmp_path: Path, cohort: int) -> None:
    for place, (rule, reason) in enumerate(RULE.items()):
        play = own(tmp_path, f"rule_{place}", rule, cohort=cohort)
        with pytest.raises(AssertionError, match=rf"^{re.escape(reason)}"):  # the harness has the client's reason
            play.train(1)


@pytest.mark.usefixtures("_here")
def test_a_hook_that_is_evaluated_is_named(tmp_path: Path) -> None:
    for place, value in enumerate(("None", "{}")):
        play = own(tmp_path, f"personalised_{place}", f"def personalised(self, local): return {value}")
        play.round(1)
        with pytest.raises(
            ValueError, match=r"^Rule.personalised returns (None; return a|no 'fc1.weight'; return all)"
        ):
            play.personalised(0)


@pytest.mark.usefixtures("_here")
def test_a_hook_on_the_server_is_named(tmp_path: Path) -> None:
    for place, (server, reason) in enumerate(SERVER.items()):
        with pytest.raises(RunError, match=re.escape(reason)):
            own(tmp_path, f"server_{place}", server=server).train(1)
    with pytest.raises(KeyError, match=r"'head' is no group of layers; give one, such as layers.group\('body'\), or"):
        own(tmp_path, "kept", server="def kept(self, server_round): return 'head'").train(1)


@pytest.mark.usefixtures("_here")
def test_a_plan_that_is_none_is_named_before_the_run(tmp_path: Path) -> None:
    for place, (plan, reason) in enumerate(PLANS.items()):
        with pytest.raises(ConfigError, match=re.escape(reason)):
            own(tmp_path, f"plan_{place}", server=f"def local_plan(self, server_round): return {plan}")


@pytest.mark.usefixtures("_here")
def test_what_a_client_takes_has_the_type_of_the_model(tmp_path: Path) -> None:
    play = own(
        tmp_path,
        "double",
        server="def for_client(self, r, c): return {k: v.half() for k, v in self.global_model.items()}",
    )
    assert all(value.dtype == play.initial[key].dtype for key, value in play.strategy._down(1, 0).items())
