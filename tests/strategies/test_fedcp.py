"""FedCP against the authors' modules, written down plainly, and its own model in evaluation and on disk."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.restored import restored_model
from fedsim.models.params import Params, state_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.seeds import rng
from fedsim.strategy import Phase, Step
from fedsim.training import Network
from fedsim.training.dropout import random_words
from strategies import FedCp
from strategies.fedcp import FedCpRule, GatedHead
from tests.strategies.harness import Batch, Mlp, Play, assert_close, body, mean_of, network_of, words_model

HEAD, LR, SIZE = ("fc3.weight", "fc3.bias"), 0.1, 5


def policy_of(values: Params) -> nn.Module:
    policy = nn.Sequential(nn.Linear(SIZE, 2 * SIZE), nn.LayerNorm([2 * SIZE]), nn.ReLU()).double()
    policy.load_state_dict(values)
    return policy


def logits_of(
    features: Tensor, own: Params, generic: Params, policy: nn.Module, context: Tensor, noise: Tensor | float
) -> Tensor:
    scores = policy(features * context).view(len(features), 2, -1)
    personal, common = (scores + noise).softmax(1).unbind(1)
    return linear(features * personal, own["fc3.weight"], own["fc3.bias"]) + linear(
        features * common, generic["fc3.weight"], generic["fc3.bias"]
    )


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over all pairs of differences."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b, sign in ((x, x, 1.0), (y, y, 1.0), (x, y, -2.0)):
        for width in (10, 15, 20, 50):
            total = total + sign * torch.exp(-0.5 * (a[:, None] - b[None]).square().sum(2) / width).mean()
    return total


def trained(
    play: Play, start: Params, generic: Params, policy: Params, batches: list[Batch], stream: Any, mmd: float
) -> tuple[Params, Params]:
    network, gate, received = network_of(play.model, start), policy_of(policy), network_of(play.model, start)
    context = normalize(start["fc3.weight"].sum(0), dim=0)
    weights = [*network.parameters(), *gate.parameters()]
    for inputs, targets in batches:
        words = random_words(torch.tensor(int(stream.integers(2**63 - 1))), 0, (len(inputs), 2, SIZE))
        noise = -torch.log(-torch.log((words.double() + 2**31 + 0.5) / 2**32))
        features = body(network, inputs)
        own = dict(network.named_parameters())
        loss = cross_entropy(logits_of(features, own, generic, gate, context, noise), targets)
        loss = loss + mmd * discrepancy(features, body(received, inputs).detach())
        slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for value, slope in zip(weights, slopes, strict=True):
                value -= LR * slope
    return (
        {key: value.detach().clone() for key, value in state_of(network).items()},
        {key: value.detach().clone() for key, value in gate.state_dict().items()},
    )


@pytest.mark.parametrize("cohort", [1, 3])
def test_rounds_are_those_of_the_authors(cohort: int) -> None:
    play = Play("fedcp", {"mmd": 30.0}, cohort=cohort)
    model, heads = play.initial, dict[int, Params]()
    policy = play.strategy.sets_for(1, 0)["policy"]
    for server_round in play.rounds():
        uploads, policies, there = [], [], sorted(play.present(server_round))
        for client in there:
            generic = {key: model[key] for key in HEAD}
            batches, stream = play.batches(server_round, client), rng(0, "rule", server_round, client)
            own, gate = trained(play, model | heads.get(client, {}), generic, policy, batches, stream, 30.0)
            heads[client] = {key: own[key] for key in HEAD}
            uploads.append(own | {key: 0.5 * own[key] + 0.5 * generic[key] for key in HEAD})
            policies.append(gate)
            assert_close(play.uploaded(client), uploads[-1])
        sizes = [play.sizes[client] for client in there]
        model, policy = mean_of(uploads, sizes), mean_of(policies, sizes)
        assert_close(play.strategy.global_model, model)
        assert_close(play.strategy.memory["policy"], policy)
    for client, measured in play.evaluate().items():
        inputs, targets = play.federation.data.client(client).test
        context = normalize(heads[client]["fc3.weight"].sum(0), dim=0)
        features = body(network_of(play.model, model), inputs)
        logits = logits_of(features, heads[client], model, policy_of(policy), context, 0.0)
        assert measured["personalised/test/loss"] == pytest.approx(cross_entropy(logits, targets).item())
        plain = network_of(play.model, model)(inputs)
        assert measured["global/test/loss"] == pytest.approx(cross_entropy(plain, targets).item())


def test_a_new_client_has_the_generic_head() -> None:
    play = Play("fedcp", absent={1: 2})
    play.round(1)
    own, generic = (
        {key: play.personalised(2)[f"fc3.{part}.{key}"] for key in ("weight", "bias")} for part in ("own", "generic")
    )
    assert_close(own, generic, tolerance=0.0)
    assert_close(generic, {key: play.strategy.global_model[f"fc3.{key}"] for key in own}, tolerance=0.0)


def test_personal_heads_stay() -> None:
    play = Play("fedcp")
    for _ in play.rounds():
        for client in play.replied:
            own = play.kept(client)["personal_head"]
            assert not torch.isclose(own["weight"], play.uploaded(client)["fc3.weight"]).any()


def test_one_sample_has_no_discrepancy_from_itself() -> None:
    with_term, without = (
        Play("fedcp", {"mmd": 9.0}, local={"epochs": 1}, sizes=(3,)),
        Play("fedcp", {"mmd": 0.0}, local={"epochs": 1}, sizes=(3,)),
    )
    assert_close(with_term.round(1), without.round(1))  # the only step begins at the body that came


def test_positions_of_sequences_are_gated_one_by_one_and_padding_does_not_count() -> None:
    predictor = words_model(SIZE)
    params = {key: value.detach() for key, value in predictor.state_dict().items()}
    tokens, targets = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[1, -100, 0], [-100, 2, 1]])
    rule = FedCpRule(predictor, head="1", mmd=2.0)
    head = GatedHead(predictor[1])  # type: ignore[arg-type]
    head.context.fill_(0.3)
    sets = {"generic_head": {key: params[f"1.{key}"] for key in ("weight", "bias")}, "context": {"value": head.context}}
    sets |= {"policy": dict(head.policy.state_dict()), "received": params | {"0.weight": params["0.weight"] + 1}}
    drawn = {"stream": torch.tensor(5)}
    step = Step(params, sets, drawn, tokens, targets, targets != -100, 0, Phase(), 0.1, Network(predictor))
    words = random_words(drawn["stream"], 0, (2, 3, 2, SIZE)).double()
    features = params["0.weight"][tokens]
    logits = head(features, -torch.log(-torch.log((words + 2**31 + 0.5) / 2**32)))
    counted = features[targets != -100]
    expected = cross_entropy(logits.transpose(1, 2), targets) + 2 * discrepancy(counted, counted + 1)
    torch.testing.assert_close(rule.loss(step), expected)


def test_the_own_model_is_restored_with_its_gate(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    config = tiny(strategy={"name": "fedcp"}, evaluation={"save_predictions": True})
    folder = play(config)
    model = restored_model(folder, client=1)  # which checks the recorded loss
    assert {"fc2.own.weight", "fc2.generic.weight", "fc2.policy.0.weight"} <= model.state_dict().keys()
    assert "fc2.weight" in restored_model(folder).state_dict()
    assert folder.predictions.exists()
    sent = read_rows(folder.communication)
    policy = sent[sent["set"] == "policy"]
    assert set(policy["up"]) == {(2 * 12 * 12 + 6 * 12) * 4}


def test_wrong_options_are_one_line(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"head = 'fc1 \| fc3' is fc1, fc3; it must be a plain linear layer"):
        FedCp(Mlp(), head="fc1 | fc3")
    with pytest.raises(ConfigError, match="'FedCP' evaluates more than the model, which has no layers to fine-tune"):
        describe_run(tiny(strategy={"name": "fedcp"}, evaluation={"models": ["personalised", "global", "fine-tuned"]}))
