"""FedAS against the authors' procedure, written down plainly."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import sets_of
from strategies import FedAs
from tests.strategies.harness import Mlp, Play, assert_close, descend, features, mean_of, norm_mlp

LR, ALIGN_LR = 0.1, 0.3
OPTIONS = {"align_epochs": 2, "align_lr": ALIGN_LR}


def logits(params: Params, inputs: Tensor) -> Tensor:
    return linear(features(params, inputs), params["fc3.weight"], params["fc3.bias"])


def prototypes(play: Play, client: int, params: Params) -> dict[int, Tensor]:
    inputs, targets = play.train_set(client)
    found = features(params, inputs)
    return {int(label): found[targets == label].mean(0) for label in targets.unique()}


def aligned(play: Play, client: int, params: Params, old: dict[int, Tensor], stream: np.random.Generator) -> Params:
    inputs, targets = play.train_set(client)
    body = {key: value.clone().requires_grad_() for key, value in params.items() if not key.startswith("fc3")}
    for _ in range(OPTIONS["align_epochs"]):
        order = stream.permutation(len(targets))
        for start in range(0, len(order), 3):
            chosen = torch.from_numpy(order[start : start + 3])
            found, labels = features(body, inputs[chosen]), targets[chosen]
            loss = sum(((found[labels == label] - old[int(label)]) ** 2).mean() for label in labels.unique())
            slopes = torch.autograd.grad(loss, list(body.values()))
            body = {
                key: (value - ALIGN_LR * slope).detach().requires_grad_()
                for (key, value), slope in zip(body.items(), slopes, strict=True)
            }
    return params | {key: value.detach() for key, value in body.items()}


def trace(play: Play, client: int, params: Params) -> float:
    inputs, targets = play.train_set(client)
    total = 0.0
    for start in range(0, len(targets), 3):
        leaves = {key: value.clone().requires_grad_() for key, value in params.items()}
        loss = cross_entropy(logits(leaves, inputs[start : start + 3]), targets[start : start + 3])
        total += sum(float((slope**2).sum()) for slope in torch.autograd.grad(loss, list(leaves.values())))
    return total


def test_four_rounds_are_those_of_the_authors() -> None:
    play = Play("fedas", OPTIONS, rounds=4)
    own, known, body = [play.initial] * 3, {}, {k: v for k, v in play.initial.items() if not k.startswith("fc3")}
    for server_round in play.rounds():
        uploads, traces = [], []
        for client in sorted(play.present(server_round)):
            start = own[client] | body
            if client in known:
                start = aligned(play, client, start, known[client], rng(0, "rule", server_round, client))
            own[client] = descend(play.model, start, play.batches(server_round, client), LR)
            known[client] = prototypes(play, client, own[client])
            uploads.append({key: own[client][key] for key in body})
            traces.append(trace(play, client, own[client]))
            assert_close(play.uploaded(client), uploads[-1])
            kept = play.kept(client)["prototypes"]["mean"]
            for label, mean in known[client].items():
                assert torch.allclose(kept[label], mean, rtol=1e-10, atol=1e-12)
        body = mean_of(uploads, traces)
        assert_close(play.strategy.global_model, play.initial | body)


def test_without_alignment_one_client_is_fedper() -> None:
    alone = Play("fedas", {"align_epochs": 0}, sizes=(5,), absent={}, model=norm_mlp)
    fedper = Play("layer_set", {"shared": "body"}, sizes=(5,), absent={}, model=norm_mlp)
    for server_round in fedper.rounds():
        assert_close(alone.round(server_round), fedper.strategy.global_model, 0)
        assert_close(alone.personalised(0), fedper.personalised(0), 0)


def test_alignment_brings_the_features_back_and_leaves_the_head() -> None:
    plays = [Play("fedas", {"align_epochs": epochs, "align_lr": 0.3}) for epochs in (0, 5)]
    distances = []
    for play in plays:
        play.round(1)
        play.round(2)
        inputs, targets = play.train_set(0)
        old = play.kept(0)["prototypes"]["mean"]
        distances.append(float((features(play.personalised(0), inputs) - old[targets]).square().mean()))
        assert_close({"fc3.bias": play.personalised(0)["fc3.bias"]}, {"fc3.bias": play.kept(0)["model"]["fc3.bias"]}, 0)
    assert distances[1] < 0.8 * distances[0]


def test_only_the_body_travels_and_the_prototypes_stay() -> None:
    play = Play("fedas", model=norm_mlp)
    for _ in play.rounds():
        for client, reply in play.replied.items():
            assert not sets_of(reply.content)
            assert {key.partition(".")[0] for key in play.uploaded(client)} == {"fc1", "bn", "fc2"}
            assert set(play.kept(client)) == {"model", "prototypes"}
            assert {key.partition(".")[0] for key in play.kept(client)["model"]} <= {"fc3", "bn"}


def test_a_client_without_a_gradient_counts_for_nothing() -> None:
    strategy = FedAs(Mlp())
    play = Play("fedas", absent={})
    play.round(1)
    updates = play.received.updates
    known = [update.metrics["fisher_trace"] for update in updates]
    updates[0].metrics["fisher_trace"] = 0.0  # type: ignore[index]
    expected = mean_of([update.shared for update in updates[1:]], known[1:])
    assert_close(strategy.aggregate(1, updates), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align_epochs": -1}, "align_epochs = -1 must be at least 0"),
        ({"align_lr": 0.0}, "align_lr = 0.0 must be greater than 0"),
        ({"head": "all"}, "head = 'all' leaves nothing to train in the other layers"),
        ({"head": "none"}, "head = 'none' leaves nothing to train in the group itself"),
        ({"head": "fc9"}, "layer pattern 'fc9' matches nothing"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedAs(Mlp(), **options)
