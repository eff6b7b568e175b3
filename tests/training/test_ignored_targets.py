"""Targets of -100 mark padding: nothing that is trained or measured counts them."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.analysis import barriers, perturbations
from fedsim.analysis.barriers import measure
from fedsim.analysis.data import Data
from fedsim.analysis.models import Models
from fedsim.models.params import load_state_, state_of
from fedsim.training import SGD, LocalPlan, LocalTask, cohort_problem, train_
from fedsim.training.evaluation import evaluate, evaluate_cohort
from tests.training.test_cohort import check_alike

LENGTH, TOKENS, CLASSES = 6, 7, 4
SETTINGS = SGD(epochs=2, batch_size=3, lr=0.2, momentum=0.9)


class Tagger(nn.Module):
    """Logits [n, classes, length] of tokens [n, length], or [n, classes] of the whole sentence."""

    def __init__(self, norm: bool = False, each: bool = True) -> None:
        super().__init__()
        self.embedding, self.norm, self.fc = nn.Embedding(TOKENS, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)
        self.has_norm, self.each = norm, each

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        x = torch.tanh(self.norm(x) if self.has_norm else x)
        return self.fc(x.transpose(1, 2)).transpose(1, 2) if self.each else self.fc(x.mean(2))


def tagger(norm: bool = False, each: bool = True) -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tagger(norm, each).double()


def padded(n: int, seed: int = 0, each: bool = True) -> tuple[Tensor, Tensor]:
    """Return sentences of different lengths, whose padding has no target."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(TOKENS, (n, LENGTH), generator=generator)
    targets = torch.randint(CLASSES, (n, LENGTH) if each else (n,), generator=generator)
    if each:
        lengths = torch.randint(1, LENGTH + 1, (n, 1), generator=generator)
        targets[torch.arange(LENGTH) >= lengths] = -100
    else:
        targets[1::4] = -100
    return inputs, targets


@pytest.mark.parametrize("each", [True, False])
def test_training_is_plain_torch_which_ignores_them(each: bool) -> None:
    model, (inputs, targets) = tagger(each=each), padded(11, each=each)
    reference, rng = copy.deepcopy(model), np.random.default_rng(3)
    optimizer = torch.optim.SGD(reference.parameters(), SETTINGS.lr, SETTINGS.momentum)
    for _ in range(SETTINGS.epochs):
        total, count = 0.0, 0
        for chosen in torch.from_numpy(rng.permutation(11)).split(SETTINGS.batch_size):
            loss = cross_entropy(reference(inputs[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            real = int((targets[chosen] >= 0).sum())
            total, count = total + float(loss.detach()) * real, count + real
    training = train_(model, inputs, targets, LocalPlan(), SETTINGS, np.random.default_rng(3))
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert training.loss == pytest.approx(total / count, rel=1e-10)  # of the last epoch


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("each", [True, False])
def test_a_cohort_ignores_them_as_each_client_alone(each: bool, norm: bool) -> None:
    model = tagger(norm, each)
    tasks = [
        LocalTask(state_of(copy.deepcopy(model)), *padded(n, n, each), np.random.default_rng(n)) for n in (7, 3, 5)
    ]
    tasks[2].targets[:] = tasks[2].targets.abs() % CLASSES  # a client without any
    check_alike(model, tasks, settings=SETTINGS, tolerance=1e-9)
    assert cohort_problem(model, tasks[0].inputs, tasks[0].targets) is None


def test_a_batch_without_a_target_that_counts_changes_nothing() -> None:
    model, (inputs, targets) = tagger(), padded(3)
    before = {key: value.clone() for key, value in state_of(model).items()}
    training = train_(model, inputs, targets.fill_(-100), LocalPlan(), SETTINGS, np.random.default_rng(0))
    assert training.loss == 0
    assert all(torch.equal(value, before[key]) for key, value in state_of(model).items())
    assert math.isnan(evaluate(model, inputs, targets).loss)  # as in torch


def test_figures_are_sums_over_the_targets_that_count_divided_by_their_number() -> None:
    model, (inputs, targets) = tagger(), padded(300)
    targets[7] = -100
    real = targets >= 0
    with torch.no_grad():
        outputs = model(inputs)
    loss = float(cross_entropy(outputs, targets))
    accuracy = float((outputs.argmax(1) == targets)[real].double().mean())
    other = copy.deepcopy(state_of(model)), inputs[:5], targets[:5]
    for found in (
        evaluate(model, inputs, targets),
        evaluate_cohort(model, [(state_of(model), inputs, targets), other])[0],
    ):
        assert found.loss == pytest.approx(loss, rel=1e-10)
        assert found.accuracy == pytest.approx(accuracy, rel=1e-10)


def test_perturbed_figures_are_too() -> None:
    model, (_, targets) = nn.Conv1d(3, CLASSES, 1).double(), padded(300)
    inputs = torch.randn(300, 3, LENGTH, generator=torch.Generator().manual_seed(1)).double()
    table = perturbations(model, [model.state_dict()], inputs, targets, noise=[0.0])
    found = evaluate(model, inputs, targets)
    assert table["loss"].item() == pytest.approx(float(cross_entropy(model(inputs), targets).detach()), rel=1e-10)
    assert table["error"].item() == pytest.approx(1 - found.accuracy, rel=1e-10)


def two_models() -> tuple[nn.Module, list, Tensor, Tensor]:
    model, (inputs, targets) = tagger(), padded(150)
    states = [copy.deepcopy(model.state_dict()), {key: value + 0.5 for key, value in model.state_dict().items()}]
    return model, states, inputs, targets


@pytest.mark.parametrize("tolerance", [None, 0.5])
def test_barriers_are_differences_of_those_figures(tolerance: float | None) -> None:
    model, states, inputs, targets = two_models()
    table = barriers(model, states, inputs, targets, groups="full", tolerance=tolerance)
    losses = []
    for state in [*states, {key: (states[0][key] + states[1][key]) / 2 for key in states[0]}]:
        load_state_(model, state)
        losses.append(float(cross_entropy(model(inputs), targets).detach()))
    assert table["loss"].to_numpy() == pytest.approx([losses[2]] * 2, rel=1e-10)
    assert table["loss_mean_ends"].to_numpy() == pytest.approx([losses[2] - sum(losses[:2]) / 2] * 2, rel=1e-8)


def test_their_standard_errors_are_those_of_a_bootstrap_of_examples() -> None:
    model, states, inputs, targets = two_models()
    found = measure(Models(model, states), Data(inputs, targets), groups="full")
    rng, real = np.random.default_rng(0), (targets >= 0).numpy()
    losses = []
    for state in states:
        load_state_(model, state)
        losses.append(cross_entropy(model(inputs), targets, reduction="none").detach().numpy().sum(1))
    draws = []
    for _ in range(2000):
        chosen = rng.integers(len(inputs), size=len(inputs))
        draws.append((losses[1] - losses[0])[chosen].sum() / real[chosen].sum())
    difference = found.values["loss"][1] - found.values["loss"][0]
    assert difference.std(ddof=1) / np.sqrt(len(inputs)) == pytest.approx(np.std(draws), rel=0.05)
