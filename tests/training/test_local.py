import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.data import Augmentation
from fedsim.errors import ClientError
from fedsim.training import SGD, LocalPlan, Phase, recompute_buffers_, train_
from fedsim.training.evaluation import evaluate


def example(n: int = 23) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randint(0, 3, (n,), generator=generator)


def plain_sgd(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, orders: list, batch: int, lr: float, momentum: float
) -> None:
    """Mini-batch SGD as in a text book, written without torch.optim."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for order in orders:
        for start in range(0, len(order), batch):
            chosen = torch.from_numpy(order[start : start + batch])
            loss = cross_entropy(model(inputs[chosen]), targets[chosen])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, v, gradient in zip(model.parameters(), velocity, gradients, strict=True):
                    v.mul_(momentum).add_(gradient)
                    p.sub_(lr * v)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_text_book_sgd_and_drops_no_example(momentum: float) -> None:
    model, inputs, targets = example()
    reference = copy.deepcopy(model)
    rng = np.random.default_rng(3)
    plain_sgd(reference, inputs, targets, [rng.permutation(23) for _ in range(3)], 5, 0.1, momentum)
    result = train_(model, inputs, targets, LocalPlan(), SGD(3, 5, 0.1, momentum), np.random.default_rng(3))
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert result.examples_seen == 3 * 23


def test_only_the_trainable_group_moves_in_each_phase() -> None:
    model, inputs, targets = example()
    before = copy.deepcopy(model.state_dict())
    train_(model, inputs, targets, LocalPlan((Phase("head"),)), SGD(), np.random.default_rng(0))
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) == (not key.startswith("2.")) for key in before)


def test_phases_follow_each_other() -> None:
    model, inputs, targets = example()
    both, rng = copy.deepcopy(model), np.random.default_rng(5)
    train_(both, inputs, targets, LocalPlan((Phase("head", epochs=2), Phase("body"))), SGD(), np.random.default_rng(5))
    train_(model, inputs, targets, LocalPlan((Phase("head", epochs=2),)), SGD(), rng)
    train_(model, inputs, targets, LocalPlan((Phase("body"),)), SGD(), rng)
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), model.parameters(), strict=True))


def test_a_phase_in_steps_stops_within_an_epoch() -> None:
    model, inputs, targets = example()
    result = train_(model, inputs, targets, LocalPlan((Phase(steps=7),)), SGD(batch_size=5), np.random.default_rng(0))
    assert result.examples_seen == 23 + 10


def test_one_proximal_step_pulls_by_mu_times_the_distance() -> None:
    # The first step starts at the anchor, so the pull appears in the second: w2 = w1 - lr (g(w1) + mu (w1 - w0)).
    model, inputs, targets = example(4)
    start, settings = copy.deepcopy(model), SGD(batch_size=4, lr=0.1)
    one = copy.deepcopy(model)
    train_(one, inputs, targets, LocalPlan((Phase(steps=1, proximal=3.0),)), settings, np.random.default_rng(0))
    two_plain = copy.deepcopy(one)
    train_(two_plain, inputs, targets, LocalPlan((Phase(steps=1),)), settings, np.random.default_rng(0))
    train_(model, inputs, targets, LocalPlan((Phase(steps=2, proximal=3.0),)), settings, np.random.default_rng(0))
    for w, w0, w1, plain in zip(*(m.parameters() for m in (model, start, one, two_plain)), strict=True):
        assert torch.allclose(w, plain - 0.1 * 3.0 * (w1 - w0), atol=1e-12)


def test_momentum_continues_where_it_was_kept() -> None:
    model, inputs, targets = example()
    whole, settings = copy.deepcopy(model), SGD(1, 5, 0.1, 0.9)
    rng = np.random.default_rng(1)
    train_(whole, inputs, targets, LocalPlan((Phase(epochs=2),)), settings, np.random.default_rng(1))
    first = train_(model, inputs, targets, LocalPlan(), settings, rng)
    train_(model, inputs, targets, LocalPlan(), settings, rng, first.optimizer_state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_the_reported_loss_is_the_mean_over_examples_of_the_last_epoch() -> None:
    model, inputs, targets = example()
    frozen = SGD(2, 5, lr=1e-300)
    result = train_(model, inputs, targets, LocalPlan(), frozen, np.random.default_rng(0))
    assert result.loss == pytest.approx(evaluate(model, inputs, targets).loss, rel=1e-12)


@pytest.mark.parametrize("phase", [Phase(epochs=2), Phase(steps=10)])
def test_losses_count_in_the_last_epoch_and_in_all_of_a_phases_steps(phase: Phase) -> None:
    # Both train two epochs of five batches.
    model, inputs, targets = example()
    reference, rng = copy.deepcopy(model), np.random.default_rng(2)
    sums = []
    for order in (rng.permutation(23), rng.permutation(23)):
        sums.append(0.0)
        for start in range(0, 23, 5):
            chosen = order[start : start + 5]
            loss = cross_entropy(reference(inputs[chosen]), targets[chosen])
            sums[-1] += loss.item() * len(chosen)
            plain_sgd(reference, inputs, targets, [chosen], 5, 0.3, 0.0)
    result = train_(model, inputs, targets, LocalPlan((phase,)), SGD(1, 5, 0.3), np.random.default_rng(2))
    assert result.loss == pytest.approx(sums[1] / 23 if phase.epochs else sum(sums) / 46, rel=1e-12)


def test_evaluation_takes_the_mean_over_examples_not_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets = example()
    whole = cross_entropy(model(inputs), targets).item()
    monkeypatch.setattr("fedsim.training.evaluation.EVALUATION_BATCH", 7)
    result = evaluate(model, inputs, targets)
    assert result.loss == pytest.approx(whole, rel=1e-12)
    assert result.accuracy == pytest.approx((model(inputs).argmax(1) == targets).double().mean().item())
    assert result.n == 23


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode(training: bool) -> None:
    model, inputs, targets = example()
    model.train(training)
    evaluate(model, inputs, targets)
    assert model.training is training


def test_recomputed_buffers_are_the_statistics_of_the_data() -> None:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2
    model = nn.Sequential(nn.BatchNorm1d(4))
    momentum = model[0].momentum
    recompute_buffers_(model, inputs, batch_size=64)
    assert torch.allclose(model[0].running_mean, inputs.mean(0), atol=1e-6)
    assert torch.allclose(model[0].running_var, inputs.var(0), atol=1e-5)
    assert model[0].momentum == momentum
    assert not model.training


@pytest.mark.parametrize("options", [{"epochs": 1, "steps": 1}, {"epochs": 0}, {"steps": 0}, {"proximal": -0.1}])
def test_a_phase_out_of_range_is_an_error(options: dict) -> None:
    with pytest.raises(ValueError, match=r"phase|proximal"):
        Phase(**options)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def test_a_frozen_layer_keeps_its_running_statistics() -> None:
    _, inputs, targets = example()
    model = with_norm()
    before = copy.deepcopy(model.state_dict())
    train_(model, inputs, targets, LocalPlan((Phase("head"),)), SGD(), np.random.default_rng(0))
    after = model.state_dict()
    assert {key for key in before if not torch.equal(after[key], before[key])} == {"3.weight", "3.bias"}
    train_(model, inputs, targets, LocalPlan(), SGD(), np.random.default_rng(0))
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])


@pytest.mark.parametrize(("n", "batches"), [(21, 2), (20, 2), (22, 3), (1, None)])
def test_with_batch_norm_a_last_batch_of_one_joins_the_one_before(n: int, batches: int | None) -> None:
    _, inputs, targets = example()
    model = with_norm()
    if batches is None:
        with pytest.raises(ValueError, match="more than 1 value"):
            train_(model, inputs[:n], targets[:n], LocalPlan(), SGD(1, 10), np.random.default_rng(0))
        return
    result = train_(model, inputs[:n], targets[:n], LocalPlan(), SGD(1, 10), np.random.default_rng(0))
    assert result.examples_seen == n
    assert model[1].num_batches_tracked == batches
    recompute_buffers_(model, inputs[:n], 10)
    assert model[1].num_batches_tracked == batches


def test_a_phase_that_trains_nothing_is_an_error() -> None:
    model, inputs, targets = example()
    with pytest.raises(ValueError, match="'none', which holds no parameter"):
        train_(model, inputs, targets, LocalPlan((Phase("none"),)), SGD(), np.random.default_rng(0))


def test_a_model_whose_outputs_have_no_gradient_is_named() -> None:
    model, inputs, targets = example()
    model.register_forward_hook(lambda module, given, outputs: outputs.detach())
    with pytest.raises(ClientError, match=r"the model or the loss gives a loss without a gradient, as torch\.no_grad,"):
        train_(model, inputs, targets, LocalPlan(), SGD(), np.random.default_rng(0))


def test_sequences_are_evaluated_by_the_mean_over_their_positions() -> None:
    logits = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(1))
    result = evaluate(nn.Identity(), logits, targets)
    for n in range(6):
        log_likelihoods = [torch.log_softmax(logits[n, :, t], 0)[targets[n, t]] for t in range(4)]
        wrong = [logits[n, :, t].argmax() != targets[n, t] for t in range(4)]
        assert result.losses[n] == pytest.approx(-float(sum(log_likelihoods)) / 4, abs=1e-6)
        assert result.errors[n] == sum(wrong) / 4
    assert result.n == 6


def test_training_on_sequences_reports_the_loss_by_example() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5), Transposed()).double()
    tokens = torch.randint(5, (7, 4), generator=torch.Generator().manual_seed(0))
    start = evaluate(model, tokens[:, :-1], tokens[:, 1:]).loss
    settings = SGD(batch_size=3, lr=1e-30)
    result = train_(model, tokens[:, :-1], tokens[:, 1:], LocalPlan(), settings, np.random.default_rng(0))
    assert result.loss == pytest.approx(start, rel=1e-12)
    assert result.examples_seen == 7


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def test_augmented_training_is_training_on_the_images_that_the_augmentation_gives() -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 3)).double()

    generator = torch.Generator().manual_seed(1)
    images = torch.rand(10, 2, 4, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (10,), generator=generator)
    augmentation = Augmentation(flip=True, crop=1, fill=(0.5, -1.0))
    model = fresh()
    settings = SGD(epochs=2, batch_size=4, lr=0.1)
    train_(model, images, targets, LocalPlan(), settings, np.random.default_rng(5), augmentation=augmentation)
    plain, stream = fresh(), np.random.default_rng(5)
    for _ in range(2):
        order = torch.from_numpy(stream.permutation(10))
        epoch = augmentation.move(images[order], *augmentation.draw(10, stream))
        for start in (0, 4, 8):
            loss = torch.nn.functional.cross_entropy(plain(epoch[start : start + 4]), targets[order][start : start + 4])
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=1e-12)


def test_momentum_of_layers_that_a_later_phase_adds_starts_from_zero() -> None:
    model, inputs, targets = example(4)
    reference = copy.deepcopy(model)
    plan = LocalPlan((Phase("head", steps=1), Phase(steps=1)))
    train_(model, inputs, targets, plan, SGD(batch_size=4, lr=0.1, momentum=0.9), np.random.default_rng(0))
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for names in (["2.weight", "2.bias"], list(velocity)):
        parameters = [reference.get_parameter(name) for name in names]
        gradients = torch.autograd.grad(cross_entropy(reference(inputs), targets), parameters)
        with torch.no_grad():
            for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
                parameter -= 0.1 * velocity[name].mul_(0.9).add_(gradient)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_given_momentum_is_not_changed() -> None:
    model, inputs, targets = example()
    given = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    train_(model, inputs, targets, LocalPlan(), SGD(momentum=0.9), np.random.default_rng(0), given)
    assert all(torch.equal(value, torch.ones_like(value)) for value in given.values())


def test_a_parameter_that_the_model_does_not_use_stays_as_it_is() -> None:
    model, inputs, targets = example()
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    before = copy.deepcopy(model.unused.state_dict())
    plan = LocalPlan((Phase(proximal=0.1, epochs=2),))
    train_(model, inputs, targets, plan, SGD(momentum=0.9, weight_decay=0.1), np.random.default_rng(0))
    assert all(torch.equal(value, before[key]) for key, value in model.unused.state_dict().items())


ONLY_TORCH = """
import importlib.metadata, re, sys

def standard(name):
    return re.sub("[-_.]+", "-", name).lower()

# The distributions that torch and numpy need.
needed, waiting = set(), ["torch", "numpy"]
while waiting:
    name = standard(waiting.pop())
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    needed.add(name)
    names = {re.match("[A-Za-z0-9_.-]+", each)[0] for each in requirements if "extra ==" not in each}
    waiting += [each for each in names if standard(each) not in needed]
owners = importlib.metadata.packages_distributions()
theirs = {module for module, names in owners.items() if {standard(name) for name in names} & needed}
allowed = {"fedsim", *theirs, *sys.stdlib_module_names}


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is not here", name=name)


sys.meta_path.insert(0, Block())
import importlib, pkgutil, fedsim.training

for module in pkgutil.iter_modules(fedsim.training.__path__):
    if module.name != "scores":  # metrics on request, by torchmetrics
        importlib.import_module(f"fedsim.training.{module.name}")

try:
    import flwr
except ModuleNotFoundError:
    print("blocked")
"""


@pytest.mark.slow
def test_training_and_evaluation_need_torch_and_numpy_only() -> None:
    done = subprocess.run([sys.executable, "-c", ONLY_TORCH], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("blocked\n", 0), done.stderr
