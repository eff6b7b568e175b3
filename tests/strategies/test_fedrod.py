"""FedRoD with linear personal heads, written down plainly."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from fedsim.models.params import Params
from fedsim.strategy import Phase, Step
from fedsim.strategy.messages import sets_of
from fedsim.training import Network
from strategies import FedRod
from strategies.fedrod import FedRodRule
from tests.strategies.harness import CLASSES, Batch, Mlp, Play, assert_close, features, mean_of, norm_mlp, words_model

LR = 0.1


def slopes(loss: Tensor, params: Params) -> Params:
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True), strict=True))


def step(model: Params, head: Params, batch: Batch, log_counts: Tensor) -> tuple[Params, Params]:
    inputs, targets = batch
    model = {key: value.clone().requires_grad_() for key, value in model.items()}
    head = {key: value.clone().requires_grad_() for key, value in head.items()}
    z = features(model, inputs)
    generic = linear(z, model["fc3.weight"], model["fc3.bias"])
    of_model = slopes(cross_entropy(generic + log_counts, targets), model)
    both = generic.detach() + linear(z.detach(), head["weight"], head["bias"])
    of_head = slopes(cross_entropy(both, targets), head)
    return (
        {key: (value - LR * of_model[key]).detach() for key, value in model.items()},
        {key: (value - LR * of_head[key]).detach() for key, value in head.items()},
    )


@pytest.mark.parametrize("absent_count", [1e-8, 0.5])
def test_three_rounds_are_those_of_the_paper(absent_count: float) -> None:
    play = Play("fedrod", {"absent_count": absent_count})
    w = play.initial
    zeros = {"weight": torch.zeros(CLASSES, 5).double(), "bias": torch.zeros(CLASSES).double()}
    heads, absent = [zeros] * 3, 0
    for server_round in play.rounds():
        trained, present = [], sorted(play.present(server_round))
        for client in present:
            counts = [int((play.train_set(client)[1] == each).sum()) for each in range(CLASSES)]
            absent += counts.count(0)
            log_counts = torch.tensor([count or absent_count for count in counts]).double().log()
            own = w
            for batch in play.batches(server_round, client):
                own, heads[client] = step(own, heads[client], batch, log_counts)
            trained.append(own)
            assert_close(play.kept(client)["personal_head"], heads[client])
        w = mean_of(trained, [play.sizes[client] for client in present])
        assert_close(play.strategy.global_model, w)
    assert absent
    inputs = play.train_set(0)[0]
    network = Mlp().double()
    for client in range(3):
        network.load_state_dict(play.personalised(client))
        z = features(w, inputs)
        expected = linear(z, w["fc3.weight"], w["fc3.bias"]) + linear(z, **heads[client])
        torch.testing.assert_close(network(inputs), expected)


def balanced(client: int, inputs: Tensor, targets: Tensor) -> Batch:
    return inputs, torch.arange(len(targets)) % CLASSES


def test_on_balanced_classes_the_generic_model_is_that_of_fedavg() -> None:
    rod, full = (Play(name, sizes=(3, 9, 6), change=balanced) for name in ("fedrod", "full"))
    for server_round in rod.rounds():
        assert_close(rod.strategy.global_model, full.round(server_round))


def test_the_personal_head_and_class_counts_never_leave_the_client() -> None:
    play = Play("fedrod")
    for _ in play.rounds():
        assert not any(sets_of(message.content) for message in (*play.sent.values(), *play.replied.values()))
        assert "classes" not in play.kept(0)


def test_a_client_that_never_trained_is_evaluated_with_the_generic_head() -> None:
    play = Play("fedrod", absent={1: 2})
    assert_close(play.round(1), play.personalised(2), 0)


def test_sequences_have_logits_at_each_position() -> None:
    length, width = 4, 5
    predictor = words_model(width)
    params = {key: value.detach() for key, value in predictor.state_dict().items()}
    tokens = torch.arange(2 * length).view(2, length) % CLASSES
    head = {"weight": torch.ones(CLASSES, width).double(), "bias": torch.arange(CLASSES).double()}
    sets = {"personal_head": head, "classes": {"log_counts": torch.arange(CLASSES).double()}}
    network = Network(predictor)
    loss = FedRodRule(predictor, head="1", absent_count=1e-8).loss(
        Step(params, sets, {}, tokens, tokens, None, 0, Phase(), LR, network)
    )
    logits = predictor(tokens)
    own = linear(params["0.weight"][tokens], **head).transpose(1, 2)
    balanced_logits = logits + torch.arange(CLASSES)[:, None]
    torch.testing.assert_close(loss, cross_entropy(balanced_logits, tokens) + cross_entropy(logits + own, tokens))


def test_a_head_that_cannot_be_determined_is_asked_for_by_name() -> None:
    with pytest.raises(ValueError, match="'head' is not known: the model has no linear layer"):
        FedRod(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match=r"head = 'fc\*' is fc1, fc2, fc3; it must be a plain linear layer"):
        FedRod(Mlp(), head="fc*")
    with pytest.raises(ValueError, match="head = 'bn' is bn; it must be a plain linear layer"):
        FedRod(norm_mlp(), head="bn")
    with pytest.raises(ValueError, match=r"absent_count = 0 must be greater than 0"):
        FedRod(Mlp(), absent_count=0)
