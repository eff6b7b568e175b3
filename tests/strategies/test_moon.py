"""MOON against equation 3 of its paper, by plain autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, cross_entropy

from fedsim.models.params import Params
from fedsim.strategy import Phase, Step
from fedsim.training import Network
from strategies.moon import MoonRule
from tests.strategies.harness import (
    Batch,
    Mlp,
    Play,
    assert_close,
    descend,
    mean_of,
    network_of,
    norm_mlp,
    words_model,
)


def logits_and_features(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs, and what the head ``fc3`` gets."""
    caught: list[Tensor] = []
    hook = network.get_submodule("fc3").register_forward_pre_hook(lambda _, values: caught.append(values[0]))
    logits = network(inputs)
    hook.remove()
    return logits, caught[0]


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_rounds_are_those_of_the_equation(model: type[nn.Module]) -> None:
    play = Play("moon", {"mu": 2.0, "temperature": 0.4}, model=model, sizes=(5, 8, 4))
    averaged, own = play.initial, dict[int, Params]()
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        for client in there:
            frozen = [network_of(play.model, each) for each in (averaged, own.get(client, averaged))]

            def loss(network: nn.Module, batch: Batch, frozen=frozen) -> Tensor:  # type: ignore[no-untyped-def]
                inputs, targets = batch
                logits, features = logits_and_features(network, inputs)
                with torch.no_grad():
                    others = [logits_and_features(each, inputs)[1] for each in frozen]
                alike = torch.stack([cosine_similarity(features, each, dim=1) for each in others], 1) / 0.4
                return cross_entropy(logits, targets) + 2.0 * cross_entropy(alike, torch.zeros_like(targets))

            own[client] = descend(play.model, averaged, play.batches(server_round, client), 0.1, loss)
            sent = play.uploaded(client)
            assert_close(sent, {key: own[client][key] for key in sent})
        averaged = averaged | mean_of([own[client] for client in there], [play.sizes[client] for client in there])
        found = play.strategy.global_model
        assert_close({key: found[key] for key in play.uploaded(0)}, {key: averaged[key] for key in play.uploaded(0)})


def test_with_mu_zero_it_is_fedavg_bit_by_bit() -> None:
    contrastive, average = Play("moon", {"mu": 0.0}), Play("full")
    for server_round in contrastive.rounds():
        assert_close(contrastive.strategy.global_model, average.round(server_round), tolerance=0.0)


def test_in_the_first_round_the_term_is_constant() -> None:
    assert_close(Play("moon", {"mu": 5.0}).round(1), Play("full").round(1), tolerance=1e-13)


def on_words(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, tuple[Params, Params, Params]]:
    """Return the loss on sequences, the cross-entropy in it, and the models: its own, the received and the last."""
    predictor = words_model(4)
    params = {
        key: torch.linspace(-1, 2, len(v.flatten())).double().view(v.shape) for key, v in predictor.state_dict().items()
    }
    received, previous = ({k: value + shift for k, value in params.items()} for shift in (1, -2))
    rule = MoonRule(predictor, head="1", mu=2.0, temperature=0.4)
    sets, real = {"received": received, "previous": previous}, targets != -100
    params = {key: value.requires_grad_() for key, value in params.items()}
    step = Step(params, sets, {}, tokens, targets, real, 0, Phase(), 0.1, Network(predictor))
    entropy = cross_entropy(functional_call(predictor, params, (tokens,)), targets)
    return rule.loss(step), entropy, (params, received, previous)


def test_examples_without_a_target_that_counts_have_no_term() -> None:
    tokens, targets = torch.tensor([[0, 1], [2, 1], [1, 1]]), torch.tensor([[1, -100], [-100, -100], [0, 2]])
    loss, entropy, models = on_words(tokens, targets)
    # The first example is compared at its first position alone, the last at both.
    vectors = zip(
        *([each["0.weight"][tokens[0, 0]], each["0.weight"][tokens[2]].flatten()] for each in models), strict=True
    )
    alike = [torch.stack([cosine_similarity(own, each, dim=0) for each in others]) for own, *others in vectors]
    contrast = cross_entropy(torch.stack(alike) / 0.4, torch.tensor([0, 0]))
    torch.testing.assert_close(loss, entropy + 2 * contrast)
    assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(loss, list(models[0].values())))


def test_sequences_padded_to_a_greater_length_have_the_same_loss_and_gradients() -> None:
    tokens, targets = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[1, 2, -100], [1, 0, 2]])
    pads = torch.tensor([[1, 0], [2, 1]])
    found = [
        on_words(tokens, targets),
        on_words(torch.cat([tokens, pads], 1), torch.cat([targets, torch.full((2, 2), -100)], 1)),
    ]
    short, long = found
    torch.testing.assert_close(long[0], short[0])
    gradients = [torch.autograd.grad(loss, list(models[0].values())) for loss, _, models in found]
    torch.testing.assert_close(gradients[1], gradients[0])
