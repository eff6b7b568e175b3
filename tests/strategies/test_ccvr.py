"""CCVR against FL-bench's pooling, with unbiased covariances, and its training of the head."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.alignment import ClassGaussians
from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.dry_run import describe_run
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy import Local
from fedsim.strategy.messages import sets_of
from strategies import Ccvr
from tests.strategies.harness import CLASSES, Mlp, Play, assert_close, network_of, norm_mlp

AFTER = 2
OPTIONS = {"after": AFTER, "samples": 7, "epochs": 3, "head_lr": 0.2, "batch_size": 5}


def features_of(network: nn.Module, inputs: Tensor) -> Tensor:
    caught: list[Tensor] = []
    hook = network.get_submodule("fc3").register_forward_pre_hook(lambda _, values: caught.append(values[0]))
    with torch.no_grad():
        network(inputs)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_the_head_is_that_of_the_released_code_with_unbiased_covariances(model: type[nn.Module]) -> None:
    play, average = Play("ccvr", OPTIONS, model=model), Play("full", model=model)
    for server_round in (1, 2):
        assert_close(play.round(server_round), average.round(server_round), tolerance=0.0)
    network = network_of(play.model, average.strategy.global_model).eval()
    parts = [(features_of(network, inputs), targets) for inputs, targets in map(play.train_set, range(3))]
    play.round(AFTER + 1)
    stream = rng(0, "virtual features", AFTER + 1)
    drawn, labels = [], []
    for c in range(CLASSES):
        own = [features[targets == c].numpy() for features, targets in parts]
        total = sum(map(len, own))
        if total < 2:
            continue
        mean = sum(len(rows) / total * rows.mean(0) for rows in own if len(rows))
        cov = -total / (total - 1) * np.outer(mean, mean)
        for rows in own:
            if len(rows):
                within = np.cov(rows.T) if len(rows) > 1 else 0.0
                mu = rows.mean(0)
                cov = cov + (len(rows) - 1) / (total - 1) * within + len(rows) / (total - 1) * np.outer(mu, mu)
        drawn.append((mean, cov))
        labels += [c] * 7
    pooled = ClassGaussians.pooled([ClassGaussians(**update.sets["gaussians"]) for update in play.received.updates])
    for c, (mean, cov) in zip(sorted(set(labels)), drawn, strict=True):
        np.testing.assert_allclose(pooled.means[c], mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(pooled.covariances[c], cov, rtol=0, atol=1e-10)
    virtual, targets = pooled.draw(7, stream)
    assert targets.tolist() == labels
    head = network.get_submodule("fc3")
    for _ in range(3):
        for chosen in torch.from_numpy(stream.permutation(len(targets))).split(5):
            head.zero_grad()
            cross_entropy(head(virtual[chosen]), targets[chosen]).backward()
            with torch.no_grad():
                for value in head.parameters():
                    value -= 0.2 * value.grad
    assert_close(play.strategy.global_model, dict(network.state_dict()))
    for client in range(3):
        found = play.personalised(client)
        assert torch.equal(found["fc3.weight"], play.strategy.global_model["fc3.weight"])


def test_only_the_head_and_the_moments_travel_in_the_round_of_the_calibration() -> None:
    play = Play("ccvr", OPTIONS, rounds=4)
    for server_round in play.rounds():
        for client in play.present(server_round):
            is_calibration = server_round == AFTER + 1
            assert set(sets_of(play.replied[client].content)) == ({"gaussians"} if is_calibration else set())
            assert (set(play.uploaded(client)) == {"fc3.weight", "fc3.bias"}) == is_calibration


def test_features_are_measured_a_mini_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    measure = Local.features

    def counted(local: Local, params: Params, inputs: Tensor, layer: str) -> Tensor:
        sizes.append(len(inputs))
        return measure(local, params, inputs, layer)

    monkeypatch.setattr(Local, "features", counted)
    play = Play("ccvr", OPTIONS, sizes=(8,), absent={})
    for server_round in (1, 2, AFTER + 1):
        play.round(server_round)
    assert sizes == [3, 3, 2]


def test_without_epochs_it_is_fedavg_and_a_round_of_nothing() -> None:
    play, average = Play("ccvr", OPTIONS | {"epochs": 0}), Play("full")
    for server_round in (1, 2):
        average.round(server_round)
        play.round(server_round)
    assert_close(play.round(3), average.strategy.global_model, tolerance=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": 0}, "after = 0 must be at least 1"),
        ({"head": "fc2 | fc3"}, r"head = 'fc2 \| fc3' is fc2, fc3; it must be a plain linear layer"),
        ({"samples": 0}, "samples = 0 must be at least 1"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ccvr(Mlp(), **options)


def test_a_run_that_ends_before_the_calibration_is_refused(tiny: Callable[..., Config]) -> None:
    message = "calibrates in round 3, and the run has 2; set strategy.after = 1 or rounds = 3"
    with pytest.raises(ConfigError, match=message):
        describe_run(tiny(rounds=2, strategy={"name": "ccvr", "after": 2}))
