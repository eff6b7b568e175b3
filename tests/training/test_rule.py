"""What a rule does in training: its loss, its gradients, its sets; alone and in a cohort."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.models.params import Params, load_state_, state_of
from fedsim.training import (
    SGD,
    ClientRule,
    Finished,
    Local,
    LocalPlan,
    LocalTask,
    Phase,
    Ruled,
    Step,
    Training,
    train_,
    train_cohort,
)
from fedsim.training.dropout import seeded_dropout_

SIZES = (7, 4, 9)


def net(*kinds: str) -> nn.Module:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {"norm": nn.BatchNorm1d(5), "dropout": nn.Dropout(0.4)}
    middle = [made[kind] for kind in kinds if kind != "plain"]
    model = nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, 2)).double()
    seeded_dropout_(model)
    return model


def start_of(model: nn.Module) -> Params:
    return {key: value.detach().clone() for key, value in state_of(model).items()}


def data(client: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(client)
    n = SIZES[client]
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.arange(n) % 2


def members(ruled: dict[int, Ruled], start: Params) -> list[LocalTask]:
    return [LocalTask(start, *data(k), np.random.default_rng(k), ruled=ruled[k]) for k in ruled]


def alone(model: nn.Module, task: LocalTask, plan: LocalPlan, settings: SGD) -> tuple[Params, Training]:
    load_state_(model, task.params)
    training = train_(model, task.inputs, task.targets, plan, settings, task.rng, ruled=task.ruled)
    return start_of(model), training


class Twice(ClientRule):
    """Adds to the gradient that of a second pass, which has masks of its own."""

    def gradient(self, step: Step, gradients: Params) -> Params:
        def loss(own: Params) -> Tensor:
            others = {key: value.clone() for key, value in step.params.items() if key not in own}
            return step.loss_of(step.logits(others | own))

        found, _ = step.gradient(loss, {key: step.params[key] for key in gradients})
        return {key: value + found[key] for key, value in gradients.items()}


class Everything(ClientRule):
    """Trains a set and a number with the model, draws noise, and changes gradients."""

    trained = ("personal", "mix")

    def draw(self, rng: np.random.Generator, sets: object) -> Params:
        return {"weight": torch.tensor(rng.uniform())}

    def loss(self, step: Step) -> Tensor:
        mixed = {
            key: step.sets["mix"]["alpha"] * value + (1 - step.sets["mix"]["alpha"]) * step.params[key].detach()
            if value.is_floating_point() and "running" not in key
            else value
            for key, value in step.sets["personal"].items()
        }
        own = step.cross_entropy(step.logits(step.params))
        return own + step.drawn["weight"] * step.cross_entropy(step.logits(mixed))

    def gradient(self, step: Step, gradients: Params) -> Params:
        size = sum(value.square().sum() for value in gradients.values())
        return {name: value / (1 + size) + 0.01 * step.number for name, value in gradients.items()}


def sets_of(start: Params) -> dict[str, Params]:
    return {
        "personal": {key: value.clone() for key, value in start.items()},
        "mix": {"alpha": torch.tensor(0.4, dtype=torch.float64)},
    }


@pytest.mark.parametrize("kind", ["plain", "norm", "dropout"])
@pytest.mark.parametrize("plan", [LocalPlan(), LocalPlan((Phase("2", epochs=1), Phase(epochs=2, proximal=0.3)))])
def test_a_rule_in_a_cohort_does_to_each_client_what_it_does_alone(kind: str, plan: LocalPlan) -> None:
    model, settings = net(kind), SGD(2, 3, 0.1, momentum=0.5)
    plan = plan if kind == "plain" else LocalPlan()
    start = start_of(model)
    rules = [{k: Ruled(Everything(), sets_of(start), np.random.default_rng(9 + k)) for k in range(3)} for _ in range(2)]
    together = train_cohort(model, members(rules[0], start), plan, settings)
    for task, (params, training) in zip(members(rules[1], start), together, strict=True):
        expected, report = alone(model, task, plan, settings)
        for key in start:
            assert torch.allclose(params[key], expected[key], atol=1e-10), key
            assert torch.allclose(training.sets["personal"][key], report.sets["personal"][key], atol=1e-10), key
        assert torch.allclose(training.sets["mix"]["alpha"], report.sets["mix"]["alpha"], atol=1e-10)
        assert training.loss == pytest.approx(report.loss)
        assert training.passes == report.passes
        assert training.passes.backward == 2 * training.examples_seen
        assert set(training.optimizer_state) == set(report.optimizer_state)


@pytest.mark.parametrize("kinds", [("dropout",), ("norm", "dropout")])
def test_masks_of_the_gradients_hook_are_the_same_in_a_cohort(kinds: tuple[str, ...]) -> None:
    model, settings = net(*kinds), SGD(2, 3, 0.1)
    start = start_of(model)
    tasks = [members(dict.fromkeys(range(3), Ruled(Twice())), start) for _ in range(2)]
    together = train_cohort(model, tasks[0], LocalPlan(), settings)
    for task, (params, _) in zip(tasks[1], together, strict=True):
        expected, _ = alone(model, task, LocalPlan(), settings)
        for key in start:
            assert torch.allclose(params[key], expected[key], atol=1e-10), key


def test_a_rule_follows_its_own_loss_and_gradients_by_hand() -> None:
    model = net()
    start = start_of(model)
    inputs, targets = data(0)
    task = LocalTask(start, inputs, targets, np.random.default_rng(0))
    ruled = Ruled(Everything(), sets_of(start), np.random.default_rng(5))
    params, report = alone(
        model, LocalTask(start, inputs, targets, np.random.default_rng(0), ruled=ruled), LocalPlan(), SGD(1, 7, 0.1)
    )
    order = task.rng.permutation(7)
    x, y = inputs[order], targets[order]

    def forward(p: Params) -> Tensor:
        return torch.tanh(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]

    w = {key: value.clone().requires_grad_() for key, value in start.items()}
    v = {key: value.clone().requires_grad_() for key, value in start.items()}
    alpha = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    mixed = {key: alpha * v[key] + (1 - alpha) * w[key].detach() for key in v}
    drawn = np.random.default_rng(5).uniform()
    loss = cross_entropy(forward(w), y) + drawn * cross_entropy(forward(mixed), y)
    leaves = [*w.values(), *v.values(), alpha]
    gradients = torch.autograd.grad(loss, leaves)
    size = sum(gradient.square().sum() for gradient in gradients)
    after = [leaf.detach() - 0.1 * gradient / (1 + size) for leaf, gradient in zip(leaves, gradients, strict=True)]
    found = [*params.values(), *report.sets["personal"].values(), report.sets["mix"]["alpha"]]
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(found, after, strict=True))
    assert report.loss == pytest.approx(loss.item())


def test_a_phase_trains_a_set_in_the_place_of_the_model_and_towards_it() -> None:
    model, start = net("norm"), start_of(net("norm"))
    personal = {key: value + 0.5 if value.is_floating_point() else value for key, value in start.items()}
    plan = LocalPlan((Phase(trains="personal", proximal=0.7, toward="model", lr=0.05), Phase(epochs=1)))
    for trained in (
        alone(model, members({0: Ruled(sets={"personal": personal})}, start)[0], plan, SGD(1, 7, 0.1)),
        train_cohort(
            model, members(dict.fromkeys((0, 1), Ruled(sets={"personal": personal})), start), plan, SGD(1, 7, 0.1)
        )[0],
    ):
        params, report = trained
        reference, stream = net("norm").train(), np.random.default_rng(0)
        inputs, targets = data(0)
        for begin, lr, pull, result in ((personal, 0.05, 0.7, report.sets["personal"]), (start, 0.1, 0.0, params)):
            load_state_(reference, begin)
            order = stream.permutation(7)
            loss = cross_entropy(reference(inputs[order]), targets[order])
            gradients = torch.autograd.grad(loss, list(reference.parameters()))
            for (name, value), gradient in zip(reference.named_parameters(), gradients, strict=True):
                expected = value.detach() - lr * (gradient + pull * (begin[name] - start[name]))
                assert torch.allclose(result[name], expected, atol=1e-12), name
            assert torch.allclose(result["1.running_mean"], reference.state_dict()["1.running_mean"])
    assert torch.equal(personal["0.bias"], start["0.bias"] + 0.5)


def test_momentum_of_a_set_is_its_own_and_continues_where_it_was() -> None:
    model, start = net(), start_of(net())
    plan = LocalPlan((Phase(trains="personal"), Phase()))
    ruled = Ruled(sets={"personal": start})
    settings = SGD(1, 7, 0.1, momentum=0.9)
    _, first = alone(model, members({0: ruled}, start)[0], plan, settings)
    assert set(first.optimizer_state) == {f"{of}{name}" for of in ("", "personal/") for name in start}
    tasks = [LocalTask(start, *data(k), np.random.default_rng(k), first.optimizer_state, ruled) for k in (0, 1)]
    together = train_cohort(model, tasks, plan, settings)[0][1]
    load_state_(model, start)
    again = train_(model, *data(0), plan, settings, np.random.default_rng(0), first.optimizer_state, ruled=ruled)
    for name, value in again.optimizer_state.items():
        assert torch.allclose(value, together.optimizer_state[name], atol=1e-12), name


def test_the_loss_is_the_models_where_a_set_is_trained_after_it() -> None:
    model, start = net(), start_of(net())
    far = {key: value + 2 for key, value in start.items()}
    plans = (
        LocalPlan((Phase(),)),
        LocalPlan((Phase(), Phase(trains="personal"))),
        LocalPlan((Phase(trains="personal"),)),
    )

    def tasks() -> list[LocalTask]:
        return members(dict.fromkeys((0, 1), Ruled(sets={"personal": far})), start)

    single = [[alone(model, task, plan, SGD(1, 3, 0.1))[1] for task in tasks()] for plan in plans]
    cohort = [[each for _, each in train_cohort(model, tasks(), plan, SGD(1, 3, 0.1))] for plan in plans]
    for found in (single, cohort):
        of_model, both, of_set = ([report.loss for report in reports] for reports in found)
        assert both == of_model
        assert all(abs(one - other) > 0.1 for one, other in zip(of_set, of_model, strict=True))
        assert [report.passes.backward for report in found[1]] == [2 * SIZES[0], 2 * SIZES[1]]


def test_a_phase_that_names_a_set_which_the_client_does_not_have_says_what_it_has() -> None:
    model, start = net(), start_of(net())
    for phase in (Phase(trains="persnal"), Phase(proximal=1.0, toward="persnal")):
        with pytest.raises(ValueError, match="'persnal', and the client has: model, personal"):
            alone(model, members({0: Ruled(sets={"personal": start})}, start)[0], LocalPlan((phase,)), SGD())


def test_without_a_rule_the_passes_are_the_examples_seen() -> None:
    model = net()
    report = alone(model, members({0: Ruled()}, start_of(model))[0], LocalPlan((Phase(epochs=3),)), SGD(1, 3))[1]
    assert report.passes.forward == report.passes.backward == report.examples_seen == 3 * SIZES[0]


@dataclass(frozen=True)
class Head(ClientRule):
    """Learns from the head's input only."""

    layer: str = "2"

    def loss(self, step: Step) -> Tensor:
        logits, features = step.logits_and_features(step.params, self.layer)
        again = features @ step.params["2.weight"].T + step.params["2.bias"]
        return step.cross_entropy(again) + 0 * logits.sum()


def test_the_features_are_the_heads_input() -> None:
    model, start = net(), start_of(net())
    plain = alone(model, members({0: Ruled()}, start)[0], LocalPlan(), SGD())[0]
    ruled = alone(model, members({0: Ruled(Head())}, start)[0], LocalPlan(), SGD())[0]
    assert all(torch.allclose(plain[key], ruled[key], atol=1e-12) for key in plain)


def test_a_rule_sees_the_client_if_a_hook_of_its_is_given_it() -> None:
    class Finishing(ClientRule):
        def finish(self, local: Local, started: Local) -> Finished:
            return Finished(started.own)

    class Personal(ClientRule):
        def personalised(self, local: Local) -> Params:
            return dict(local.own)

    class Steep(ClientRule):
        def loss(self, step: Step) -> Tensor:
            return 2 * super().loss(step)

    assert [rule().sees_client for rule in (Finishing, Personal, Steep, ClientRule)] == [True, True, False, False]
