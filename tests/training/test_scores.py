"""Metrics are sklearn's on all predictions at once, also where clients lack classes, and NaN where there are none."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from fedsim.training.metrics import METRICS, unmeasured
from fedsim.training.scores import scores
from fedsim.training.targets import IGNORED

GENERATOR = torch.Generator().manual_seed(0)
N, CLASSES, NAMES = 60, 4, ("a", "b", "c/d", "e")
LOGITS = torch.randn(N, CLASSES, generator=GENERATOR)
LABELS = torch.randint(CLASSES, (N,), generator=GENERATOR)
LACKING = LABELS.where(LABELS != 2, 0)  # as a client without a class, which is predicted all the same


@pytest.mark.parametrize(
    ("name", "measured", "remedy"),
    [
        ("rmse", ["loss", "accuracy"], "the task has no rmse, choose one of loss, accuracy"),
        (
            "accuracy:9",
            ["loss", "accuracy"],
            "choose one of loss, accuracy, or .* evaluation.metrics = ['accuracy-by-class']",
        ),
        ("accuracy:9", ["accuracy", "accuracy:a", "accuracy:b"], "its classes are a, b"),
        ("auroc", ["accuracy"], "choose one of accuracy, or run again with evaluation.metrics = ['auroc']"),
        ("perplexity", ["accuracy"], "choose one of accuracy, or .* = ['perplexity'], if the task has it"),
        ("r2", ["rmse"], "choose one of rmse, or run again with evaluation.metrics = ['r2']"),
    ],
)
def test_the_remedy_for_a_metric_that_was_not_measured_can_be_followed(
    name: str, measured: list[str], remedy: str
) -> None:
    first, _, last = remedy.partition(".*")
    text = unmeasured(name, measured)
    assert text.startswith(first)
    assert text.endswith(last)
    assert last or text == remedy


def found(task: str, outputs: Tensor, targets: Tensor, names: tuple[str, ...] = NAMES) -> dict[str, float]:
    asked = [
        each.name for each in METRICS.values() if task in each.tasks and each.name not in ("loss", "accuracy", "rmse")
    ]
    return scores(asked, task, outputs, targets, names)


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [abs((is_right[bins == b] - confidence[bins == b]).sum()) for b in range(15)]
    return sum(gaps) / len(confidence)


@pytest.mark.parametrize("labels", [LABELS, LACKING])
def test_metrics_of_classes_are_sklearns(labels: Tensor) -> None:
    values = found("classification", LOGITS, labels)
    y, guess, shares = labels.numpy(), LOGITS.argmax(1).numpy(), softmax(LOGITS.double().numpy(), axis=1)
    wanted_balanced = np.mean([np.mean(guess[y == c] == c) for c in np.unique(y)])
    assert values["balanced-accuracy"] == pytest.approx(wanted_balanced)
    assert values["macro-f1"] == pytest.approx(sklearn_metrics.f1_score(y, guess, average="macro"))
    aurocs = [sklearn_metrics.roc_auc_score(y == c, shares[:, c]) for c in np.unique(y)]
    assert values["auroc"] == pytest.approx(np.mean(aurocs))
    wanted = calibration_error(shares.max(1), (guess == y).astype(float))
    assert values["calibration-error"] == pytest.approx(wanted, rel=1e-5)
    by_class = {NAMES[c]: np.mean(guess[y == c] == c) for c in np.unique(y)}
    assert {k.removeprefix("accuracy:"): v for k, v in values.items() if ":" in k} == pytest.approx(by_class)


def test_metrics_of_a_yes_or_no_and_of_labels_are_sklearns() -> None:
    logits, yes = LOGITS[:, :1], (LABELS > 1).float()
    values, y = found("binary", logits, yes, ("no", "yes")), yes.numpy()
    guess, score = (logits[:, 0] > 0).numpy(), logits[:, 0].double().numpy()
    assert values["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(y, score))
    assert values["macro-f1"] == pytest.approx(sklearn_metrics.f1_score(y, guess, average="macro"))
    assert values["balanced-accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(y, guess))
    assert values["accuracy:yes"] == pytest.approx(guess[y == 1].mean())
    several = (torch.randn(N, CLASSES, generator=GENERATOR) > 0).float()
    values = found("multi-label", LOGITS, several)
    assert values["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(several.numpy(), LOGITS.numpy()))
    wanted = sklearn_metrics.f1_score(several.numpy(), (LOGITS > 0).numpy(), average="macro")
    assert values["macro-f1"] == pytest.approx(wanted)
    assert values["accuracy:e"] == pytest.approx(float(((LOGITS > 0) == several.bool()).double().mean(0)[3]))


def test_labels_that_a_client_neither_has_nor_predicts_do_not_count() -> None:
    has = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    logits = torch.tensor([[1.0, -1, -1, -1], [-1, -1, 1, -1], [-1, 1, -1, -1]])
    assert found("multi-label", logits, has)["macro-f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert math.isnan(found("multi-label", -torch.ones(3, 4), torch.zeros(3, 4))["macro-f1"])


def test_metrics_of_numbers_and_of_tokens() -> None:
    targets = LOGITS[:, :2] + 0.5
    outputs = LOGITS[:, 2:]
    wanted = sklearn_metrics.r2_score(targets.numpy(), outputs.numpy())
    assert found("regression", outputs, targets)["r2"] == pytest.approx(wanted, rel=1e-6)
    assert found("regression", outputs[:, :1], targets[:, 0])["r2"] == pytest.approx(
        sklearn_metrics.r2_score(targets[:, 0].numpy(), outputs[:, 0].numpy()), rel=1e-6
    )
    logits = LOGITS.view(12, 5, CLASSES).movedim(2, 1)
    tokens = LABELS.view(12, 5).clone()
    tokens[3, 2:] = IGNORED
    real = tokens.flatten() != IGNORED
    losses = -log_softmax(LOGITS.double().numpy(), axis=1)[np.arange(N), LABELS.numpy()]
    values = found("next-token", logits, tokens)
    assert values["perplexity"] == pytest.approx(math.exp(losses[real.numpy()].mean()), rel=1e-6)
    assert values["macro-f1"] == pytest.approx(
        sklearn_metrics.f1_score(LABELS[real].numpy(), LOGITS.argmax(1)[real].numpy(), average="macro")
    )


def test_what_is_not_defined_is_missing() -> None:
    one = found("classification", LOGITS, LABELS * 0)
    assert math.isnan(one["auroc"])
    assert [name for name in one if ":" in name] == ["accuracy:a"]
    assert math.isnan(found("binary", LOGITS[:, 0], LABELS.float() * 0, ("0", "1"))["auroc"])
    assert math.isnan(found("multi-label", LOGITS, LOGITS * 0)["auroc"])
    assert math.isnan(found("regression", LOGITS[:, 0], LOGITS[:, 0] * 0)["r2"])
    assert math.isnan(found("regression", LOGITS[:1, 0], LOGITS[:1, 0])["r2"])
    lost = found("classification", LOGITS * torch.nan, LABELS)
    assert len(lost) == 8
    assert all(map(math.isnan, lost.values()))
