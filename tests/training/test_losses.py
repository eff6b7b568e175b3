"""The loss of a run is torch's, alone and in a cohort, with weights of classes and targets that do not count."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.training import LocalPlan, LocalSettings, LocalTask, Ruled, train_, train_cohort
from fedsim.training.evaluation import criterion_of, evaluate, evaluate_cohort
from fedsim.training.losses import Loss, loss_of
from fedsim.training.targets import IGNORED, real_targets

N, CLASSES = 14, 3
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, 4, generator=GENERATOR, dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def targets_of(task: str) -> Tensor:
    match task:
        case "regression":
            return INPUTS[:, 0].sin() * 3
        case "binary":
            return (INPUTS[:, :1] > 0.3).double()
        case "multi-label":
            return (INPUTS[:, :CLASSES] > 0.1).double()
    return torch.arange(N) % CLASSES


def model_of(task: str) -> nn.Module:
    torch.manual_seed(1)
    outputs = {"regression": 1, "binary": 1}.get(task, CLASSES)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


TORCH: dict[str, tuple[Loss, Any]] = {
    "regression": (loss_of("regression"), lambda o, t: functional.mse_loss(o[:, 0], t)),
    "binary": (loss_of("binary"), functional.binary_cross_entropy_with_logits),
    "multi-label": (loss_of("multi-label"), functional.binary_cross_entropy_with_logits),
    "classification": (
        loss_of("classification").weighted(WEIGHTS),
        lambda o, t: functional.cross_entropy(o, t, WEIGHTS),
    ),
}


@pytest.mark.parametrize("task", TORCH)
def test_training_is_torchs_for_one_model_and_in_a_cohort(task: str) -> None:
    loss, torchs = TORCH[task]
    targets, model = targets_of(task), model_of(task)
    settings, plan = LocalSettings(epochs=2, batch_size=5, lr=0.1), LocalPlan()
    parts = [slice(0, N), slice(0, 7), slice(3, 12)]
    start = {key: value.clone() for key, value in model.state_dict().items()}
    tasks = [
        LocalTask(start, INPUTS[part], targets[part], np.random.default_rng(k), ruled=Ruled(training_loss=loss))
        for k, part in enumerate(parts)
    ]
    together = train_cohort(model_of(task), tasks, plan, settings)
    for k, part in enumerate(parts):
        reference, alone = model_of(task), model_of(task)
        optimizer, rng = torch.optim.SGD(reference.parameters(), lr=0.1), np.random.default_rng(k)
        for _ in range(2):
            order = torch.from_numpy(rng.permutation(len(targets[part])))
            for chosen in order.split(5):
                optimizer.zero_grad()
                torchs(reference(INPUTS[part][chosen]), targets[part][chosen]).backward()
                optimizer.step()
        train_(alone, INPUTS[part], targets[part], plan, settings, np.random.default_rng(k), ruled=tasks[k].ruled)
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(alone.state_dict()[key], value, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(together[k][0][key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_means_leave_out_targets_that_do_not_count(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, CLASSES, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (4, 5), generator=generator)
    targets[0, 2:] = targets[3] = IGNORED
    loss = Loss(class_weights=WEIGHTS, label_smoothing=smoothing)
    wanted = functional.cross_entropy(logits, targets, WEIGHTS, label_smoothing=smoothing)
    assert loss.mean(logits, targets, targets != IGNORED).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert loss.mean(logits[3:], targets[3:], targets[3:] != IGNORED).item() == 0
    # Members have weights of their own.
    own = torch.stack([WEIGHTS, WEIGHTS.flip(0)])
    halves = logits.view(2, 2, CLASSES, 5), targets.view(2, 2, 5)
    found = Loss(label_smoothing=smoothing).of_members(*halves, halves[1] != IGNORED, own)
    for k in range(2):
        one = functional.cross_entropy(halves[0][k], halves[1][k], own[k], label_smoothing=smoothing)
        assert found[k].item() == pytest.approx(one.item(), rel=1e-12)


def test_weights_of_a_yes_or_no_are_those_of_two_classes() -> None:
    logits, targets = INPUTS[:, :1], (INPUTS[:, 1] > 0).double()
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    wanted = functional.cross_entropy(two, targets.long(), WEIGHTS[:2])
    assert loss_of("binary").weighted(WEIGHTS[:2]).mean(logits, targets).item() == pytest.approx(wanted.item())


def test_huber_and_a_custom_loss_are_means_over_examples() -> None:
    targets = INPUTS[:, :2]
    for delta in (0.5, 2.0):
        loss = loss_of(
            "regression", "huber", lambda o, t, d=delta: functional.huber_loss(o, t, reduction="none", delta=d)
        )
        wanted = functional.huber_loss(INPUTS[:, 2:], targets, delta=delta)
        assert loss.mean(INPUTS[:, 2:], targets).item() == pytest.approx(wanted.item())
    own = loss_of("regression", "mine:loss", lambda outputs, targets: (outputs - targets).abs().sum(1))
    real = torch.ones_like(targets, dtype=torch.bool)
    real[5:] = False
    wanted = (INPUTS[:5, 2:] - targets[:5]).abs().sum(1).mean()
    assert own.mean(INPUTS[:, 2:], targets, real).item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("task", TORCH)
def test_evaluation_has_the_task_s_errors_and_no_weights(task: str) -> None:
    loss, targets, model = TORCH[task][0], targets_of(task), model_of(task)
    found = evaluate(model, INPUTS, targets, criterion_of(loss))
    with torch.no_grad():
        outputs = model(INPUTS)
    wanted = {
        "regression": lambda: (outputs[:, 0] - targets).square(),
        "binary": lambda: ((outputs > 0) != targets.bool()).double()[:, 0],
        "multi-label": lambda: ((outputs > 0) != targets.bool()).double().mean(1),
        "classification": lambda: (outputs.argmax(1) != targets).double(),
    }[task]()
    torch.testing.assert_close(found.errors, wanted)
    plain = Loss(loss.task, loss.of_targets).mean(outputs, targets)
    assert found.loss == pytest.approx(plain.item(), rel=1e-12)
    members = [(dict(model.state_dict()), INPUTS[:n], targets[:n]) for n in (5, N)]
    short, whole = evaluate_cohort(model, members, criterion_of(loss))
    torch.testing.assert_close(whole.losses, found.losses)
    torch.testing.assert_close(short.errors, found.errors[:5])


def test_a_loss_that_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(ValueError, match="'mse' does not fit the task 'binary'; its losses are: binary-cross-entropy"):
        loss_of("binary", "mse")


@pytest.mark.parametrize(
    ("task", "weights"), [("regression", None), ("multi-label", None), ("classification", WEIGHTS)]
)
@pytest.mark.parametrize("ignored", [False, True])
def test_means_of_batches_weighted_by_their_targets_are_the_mean_of_all(
    task: str, weights: Tensor | None, ignored: bool
) -> None:
    loss, targets = loss_of(task).weighted(weights), targets_of(task)
    if ignored and task == "classification":
        targets = torch.where(torch.arange(N) % 4 == 0, IGNORED, targets)
    outputs = torch.randn(N, *(targets.shape[1:] if task != "classification" else (CLASSES,)), dtype=torch.float64)
    parts = [
        (loss.mean(*x, real_targets(x[1])), loss.weight_of(x[1], real_targets(x[1])))
        for x in zip(outputs.split(5), targets.split(5), strict=True)
    ]
    mean = sum(part * weight for part, weight in parts) / sum(weight for _, weight in parts)
    torch.testing.assert_close(mean, loss.mean(outputs, targets, real_targets(targets)))
