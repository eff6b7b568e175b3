"""A cohort trains as its clients do one after the other."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fedsim.errors import ClientError
from fedsim.models.architectures.gpt import gpt
from fedsim.models.params import Params, load_state_, state_of
from fedsim.training import (
    SGD,
    LocalPlan,
    LocalTask,
    Phase,
    Training,
    choose_cohort,
    cohort_problem,
    train_,
    train_cohort,
)
from fedsim.training.augmentation import Augmentation
from fedsim.training.dropout import seeded_dropout_
from tests.models.test_architectures import CASES, CLASSES, ZOO, batch, build

WHOLE = LocalPlan()
NESTEROV = SGD(epochs=2, batch_size=4, lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True)


def tasks_of(
    model: nn.Module, sizes: Sequence[int], shape: tuple[int, ...], classes: int, each: bool = False
) -> list[LocalTask]:
    """Return clients with data of their own, that start from weights of their own."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    tasks = []
    for client, n in enumerate(sizes):
        if each:  # text, with a target at each position
            inputs = torch.randint(classes, (n, *shape), generator=generator)
            targets = torch.randint(classes, (n, *shape), generator=generator)
        else:
            inputs = torch.randn(n, *shape, generator=generator, dtype=dtype)
            targets = torch.randint(classes, (n,), generator=generator)
        params = {key: value * (1 + 0.05 * client) for key, value in state_of(model).items()}
        params = {key: value.to(state_of(model)[key].dtype) for key, value in params.items()}
        tasks.append(LocalTask(params, inputs, targets, np.random.default_rng(client)))
    return tasks


def one_by_one(
    model: nn.Module,
    tasks: Sequence[LocalTask],
    plan: LocalPlan,
    settings: SGD,
    augmentation: Augmentation | None = None,
) -> list[tuple[Params, Training]]:
    results = []
    for task in tasks:
        own = copy.deepcopy(model)
        load_state_(own, task.params)
        rng = copy.deepcopy(task.rng)
        training = train_(own, task.inputs, task.targets, plan, settings, rng, task.optimizer_state, augmentation)
        results.append((state_of(own), training))
    return results


def check_alike(
    model: nn.Module,
    tasks: Sequence[LocalTask],
    plan: LocalPlan = WHOLE,
    settings: SGD = NESTEROV,
    augmentation: Augmentation | None = None,
    tolerance: float = 1e-10,
) -> list[tuple[Params, Training]]:
    """Compare a cohort with one client after the other; return the cohort's results."""
    expected = one_by_one(model, tasks, plan, settings, augmentation)
    fresh = [replace(task, rng=copy.deepcopy(task.rng)) for task in tasks]
    starts = [{key: value.clone() for key, value in task.params.items()} for task in tasks]
    found = train_cohort(copy.deepcopy(model), fresh, plan, settings, augmentation)
    for start, task, (params, training), (wanted, report) in zip(starts, tasks, found, expected, strict=True):
        assert params.keys() == wanted.keys()
        assert training.optimizer_state.keys() == report.optimizer_state.keys()
        for one, other in ((params, wanted), (training.optimizer_state, report.optimizer_state)):
            for key in other:
                assert one[key].dtype == other[key].dtype
                torch.testing.assert_close(one[key], other[key], rtol=tolerance, atol=tolerance)
        assert training.loss == pytest.approx(report.loss, rel=tolerance)
        assert training.examples_seen == report.examples_seen
        assert all(torch.equal(task.params[key], start[key]) for key in start)  # what is given stays as it is
    return found


def perceptron(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(8, 3),
    ).double()
    seeded_dropout_(model)
    return model


def vectors(model: nn.Module, *sizes: int) -> list[LocalTask]:
    return tasks_of(model, sizes, (6,), 3)


# Two architectures with every normalisation, the larger ones with one.
VECTORISED = [
    (name, norm)
    for name, norm in CASES
    if name != "char-lstm" and (name in ("resnet20", "mobilenet") or norm in (None, "group"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), VECTORISED)
def test_every_model_trains_in_a_cohort_as_alone(name: str, norm: str | None) -> None:
    model, sample = copy.deepcopy(build(name, norm)).double(), ZOO[name]
    # Statistics over a few examples of deep nets multiply rounding, so these take a small step.
    settings = SGD(1, 8, lr=1e-4) if norm == "batch" or name == "torchvision" else replace(NESTEROV, epochs=1)
    tasks = tasks_of(
        model, (3, 2) if name.startswith("vgg") else (8, 5), sample.shape, CLASSES, each=len(sample.shape) == 1
    )
    if name == "text-cnn":  # one target for a whole sentence
        tasks = [replace(task, targets=task.targets[:, 0]) for task in tasks]
    check_alike(model, tasks, settings=settings, tolerance=1e-9)


def test_the_lstm_is_no_cohort_and_the_small_models_of_images_and_text_are() -> None:
    problems = {}
    for name in ("char-lstm", "gpt", "lenet5", "resnet20"):
        shape = ZOO[name].shape
        targets = torch.zeros(3, *(shape if len(shape) == 1 else ()), dtype=torch.int64)
        problems[name] = cohort_problem(build(name, "batch" if name == "resnet20" else None), batch(shape, 3), targets)
    assert "lstm" in str(problems.pop("char-lstm"))
    assert set(problems.values()) == {None}


def test_text_of_unequal_sizes_is_trained_as_alone() -> None:
    model = copy.deepcopy(build("gpt")).double()
    check_alike(model, tasks_of(model, (5, 1, 7), (9,), CLASSES, each=True))


@pytest.mark.parametrize(
    "settings",
    [
        SGD(1, 4, 0.1),
        SGD(3, 4, 0.1, 0.9),
        SGD(2, 4, 0.1, 0.9, 0.01, nesterov=True),
        SGD(2, 4, 0.1, 0.0, 0.01),
        SGD(2, 32, 0.1),
    ],
)
def test_clients_of_unequal_sizes_take_the_steps_that_they_take_alone(settings: SGD) -> None:
    model = perceptron()
    found = check_alike(model, vectors(model, 5, 1, 13, 4, 12, 3), settings=settings)
    assert [training.examples_seen for _, training in found] == [settings.epochs * n for n in (5, 1, 13, 4, 12, 3)]


@pytest.mark.parametrize("size", [1, 5])
def test_a_cohort_of_one_does_what_its_member_does_alone(size: int) -> None:
    model = perceptron()
    check_alike(model, vectors(model, size))


@pytest.mark.parametrize("norm", [False, True])
def test_phases_in_epochs_and_in_steps_freeze_what_they_do_not_train(norm: bool) -> None:
    plan = LocalPlan((Phase("head", epochs=3), Phase("body", steps=5, proximal=0.3), Phase(proximal=0.1)))
    model = perceptron(norm=norm)
    tasks = vectors(model, 5, 2, 13, 9)
    check_alike(model, tasks, plan)
    for (params, _), task in zip(train_cohort(model, tasks, LocalPlan((Phase("head"),)), NESTEROV), tasks, strict=True):
        frozen = {key for key in params if torch.equal(params[key], task.params[key])}
        assert frozen == {key for key in params if not key.startswith("4.")}


def test_with_batch_norm_no_client_sees_a_padded_example_and_a_last_batch_of_one_joins_the_one_before() -> None:
    model = perceptron(norm=True)
    found = check_alike(model, vectors(model, 9, 5, 2, 8, 13, 11))
    assert [int(params["1.num_batches_tracked"]) for params, _ in found] == [4, 2, 2, 4, 6, 6]


def test_a_kept_momentum_continues_and_clients_without_one_start_from_zero() -> None:
    model = perceptron()
    tasks = vectors(model, 9, 5, 6)
    first = one_by_one(model, tasks[:2], LocalPlan((Phase("head"),)), NESTEROV)
    tasks = [
        replace(task, optimizer_state=training.optimizer_state)
        for task, (_, training) in zip(tasks, first, strict=False)
    ]
    found = check_alike(model, [*tasks, *vectors(model, 9, 5, 6)[2:]])
    assert all(len(training.optimizer_state) == 4 for _, training in found)


@pytest.mark.parametrize("norm", [False, True])
def test_dropout_has_the_masks_that_each_client_has_alone(norm: bool) -> None:
    model = perceptron(0.4, norm)
    tasks = vectors(model, 9, 5, 3, 12)
    found = check_alike(model, tasks)
    model[3].p = 0.0
    plain = train_cohort(model, vectors(model, 9, 5, 3, 12), WHOLE, NESTEROV)
    assert not torch.allclose(found[0][0]["0.weight"], plain[0][0]["0.weight"])


def test_attention_drops_the_weights_that_it_drops_alone() -> None:
    torch.manual_seed(0)
    model = gpt((5,), 4, depth=1, heads=2, width=8, dropout=0.3).double()
    seeded_dropout_(model)
    check_alike(model, tasks_of(model, (5, 1, 7), (5,), 4, each=True))


def test_augmentation_has_the_numbers_that_each_client_has_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
    augmentation = Augmentation(flip=True, crop=2, fill=(0.5, -1.0))
    tasks = tasks_of(model, (5, 9, 3), (2, 6, 6), 3)
    augmented = check_alike(model, tasks, augmentation=augmentation)
    plain = train_cohort(model, tasks_of(model, (5, 9, 3), (2, 6, 6), 3), WHOLE, NESTEROV)
    assert not torch.allclose(augmented[1][0]["0.weight"], plain[1][0]["0.weight"])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_in_float32_a_few_steps_agree_closely(name: str) -> None:
    model, sample = copy.deepcopy(build(name)), ZOO[name]
    plan = LocalPlan((Phase(steps=3),))
    check_alike(model, tasks_of(model, (8, 5, 3), sample.shape, CLASSES), plan, tolerance=1e-5)


def test_what_all_clients_start_from_alike_stays_as_it_is() -> None:
    model = perceptron()
    start = {key: value.clone() for key, value in state_of(model).items()}
    found = check_alike(model, [replace(task, params=start) for task in vectors(model, 5, 4)])
    assert not torch.equal(found[0][0]["0.weight"], found[1][0]["0.weight"])


def test_a_group_without_parameters_is_an_error() -> None:
    model = perceptron()
    with pytest.raises(ValueError, match="'none', which holds no parameter"):
        train_cohort(model, vectors(model, 4, 4), LocalPlan((Phase("none"),)), NESTEROV)


class Drawing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(super().forward(x), 0.5, self.training)


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class OwnStatistics(nn.Linear):
    """Normalises by the other examples of the batch, without one of torch's modules."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(0)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Drawing, "random"), (Branching, "data-dependent"), (OwnStatistics, "another effect")]
)
def test_a_model_that_cannot_be_vectorised_says_why_and_stays_as_it_is(kind: type, reason: str) -> None:
    torch.manual_seed(0)
    model = kind(6, 3).eval()
    before = copy.deepcopy(model.state_dict())
    problem = cohort_problem(model, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    assert problem is not None
    assert reason in problem
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert cohort_problem(nn.Linear(6, 3), torch.randn(1, 6), torch.tensor([2])) is None


class FakeGauge:
    """A device on which a step of one client takes ``alone`` seconds, and a cohort's ``together``."""

    def __init__(self, alone: float, together: float, free: int) -> None:
        self._times = {False: alone, True: together}
        self._free = free
        self.cohorts: list[bool] = []

    def seconds(self, work: Callable[[], object]) -> float:
        self.cohorts.append(isinstance(work(), list))
        return self._times[self.cohorts[-1]]

    def used_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 20  # of two clients

    def free_bytes(self) -> int:
        return self._free


@pytest.mark.parametrize(
    ("together", "free", "expected"),
    [
        (3.9, 1000, 4),  # faster than 4 after each other
        (4.1, 1000, 1),
        (1.5, 79, 3),  # 3 of 10 bytes each are less than half of 79
        (1.5, 39, 1),  # no room for two
        (3.0, 79, 1),  # 3 that fit are not faster than 3 after each other
    ],
)
def test_a_cohort_is_chosen_where_it_fits_and_is_measured_to_be_faster(
    together: float, free: int, expected: int
) -> None:
    model = perceptron()
    tasks = vectors(model, 5, 9, 6, 4)
    states = [task.rng.bit_generator.state for task in tasks]
    gauge = FakeGauge(1.0, together, free)
    assert choose_cohort(model, tasks, WHOLE, NESTEROV, gauge=gauge) == expected
    assert [task.rng.bit_generator.state for task in tasks] == states
    assert set(gauge.cohorts) == ({True, False} if free > 39 else set())


def test_on_a_cpu_with_one_client_or_a_model_that_is_no_cohort_clients_train_alone() -> None:
    model, fast = perceptron(), FakeGauge(1.0, 0.1, 1000)
    assert choose_cohort(model, vectors(model, 5, 9), WHOLE, NESTEROV) == 1
    assert choose_cohort(model, vectors(model, 5), WHOLE, NESTEROV, gauge=fast) == 1
    assert choose_cohort(model, vectors(model, 5, 9), WHOLE, NESTEROV, gauge=fast) == 2
    drawing = Drawing(6, 3).double()
    assert choose_cohort(drawing, vectors(drawing, 5, 9), WHOLE, NESTEROV, gauge=fast) == 1


def test_a_cohort_that_runs_out_of_memory_is_not_chosen() -> None:
    class FedAvg(FakeGauge):
        def seconds(self, work: Callable[[], object]) -> float:
            raise torch.OutOfMemoryError("full")

    model = perceptron()
    assert choose_cohort(model, vectors(model, 5, 9), WHOLE, NESTEROV, gauge=FedAvg(1.0, 0.1, 1000)) == 1


def test_a_model_without_a_gradient_is_not_only_no_cohort() -> None:
    model = perceptron()
    model.register_forward_hook(lambda module, given, outputs: outputs.detach())
    tasks = vectors(model, 5, 9)
    with pytest.raises(ClientError, match="gives a loss without a gradient"):
        cohort_problem(model, tasks[0].inputs, tasks[0].targets)
    assert choose_cohort(model, tasks, WHOLE, NESTEROV, gauge=FakeGauge(1.0, 0.1, 1000)) == 1
