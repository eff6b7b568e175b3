"""FedProto against the released code's arithmetic, example by example."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from fedsim.models.params import Params
from fedsim.strategy import Phase, Step
from fedsim.strategy.messages import sets_of
from fedsim.training import Network
from strategies import FedProto
from strategies.fedproto import FedProtoRule
from tests.strategies.harness import (
    CLASSES,
    Batch,
    Mlp,
    Play,
    assert_close,
    body,
    class_two_of_one,
    descend,
    network_of,
    words_model,
)

Means = dict[int, Tensor]


def measured(play: Play, params: Params, client: int) -> Means:
    """Collect the features of each class in a list, and average it."""
    inputs, targets = play.train_set(client)
    network, by_class = network_of(play.model, params), dict[int, list[Tensor]]()
    for row, label in zip(body(network, inputs).detach(), targets.tolist(), strict=True):
        by_class.setdefault(label, []).append(row)
    return {label: sum(rows[1:], rows[0]) / len(rows) for label, rows in by_class.items()}


def pulled(network: nn.Module, batch: Batch, means: Means, weight: float) -> Tensor:
    """Return cross-entropy and MSE to features of which those with a known class are replaced by its mean."""
    features = body(network, batch[0])
    loss = cross_entropy(network.fc3(features), batch[1])  # type: ignore[operator]
    goals = features.detach().clone()
    for row, label in enumerate(batch[1].tolist()):
        if label in means:
            goals[row] = means[label]
    return loss + weight * mse_loss(goals, features)


@pytest.mark.parametrize("cohort", [1, 3])
def test_rounds_are_those_of_the_released_code(cohort: int) -> None:
    play = Play("fedproto", {"pull": 5.0}, rounds=4, change=class_two_of_one, cohort=cohort)
    models, means, missing = [play.initial] * 3, Means(), set[int]()
    for server_round in play.rounds():
        found = []
        for client in sorted(play.present(server_round)):
            batches = play.batches(server_round, client)
            models[client] = descend(
                play.model, models[client], batches, 0.1, lambda net, batch, goal=means: pulled(net, batch, goal, 5.0)
            )
            found.append(measured(play, models[client], client))
            assert_close(play.personalised(client), models[client])
        missing |= set(range(CLASSES)) - means.keys() if server_round > 1 else set()
        every = sorted({label for each in found for label in each})
        means = {}
        for label in every:
            rows = [each[label] for each in found if label in each]
            means[label] = sum(rows[1:], rows[0]) / len(rows)
            torch.testing.assert_close(play.strategy.memory["means"]["mean"][label], means[label])
        assert [int(count) > 0 for count in play.strategy.memory["means"]["count"]] == [c in means for c in range(3)]
    assert missing == {2}  # clients train without a mean of this class in the third round


def test_the_nearest_mean_is_a_linear_head() -> None:
    play = Play("fedproto", {"predict": "means"}, change=class_two_of_one, absent={1: 1})
    play.round(1)  # nobody has class 2
    inputs = play.train_set(1)[0]
    for client in range(3):
        network = network_of(play.model, play.personalised(client)).eval()
        own = network_of(play.model, play.kept(client)["model"] if client != 1 else play.initial)
        apart = (body(own, inputs)[:, None] - play.strategy.memory["means"]["mean"]).square().sum(-1)
        logits = network(inputs)
        torch.testing.assert_close(logits[:, :2].softmax(1), (-apart[:, :2]).softmax(1))
        assert logits.argmax(1).max() < 2


@pytest.mark.parametrize(("other", "options"), [("local", {}), ("fedproto", {"pull": 0.0, "predict": "means"})])
def test_without_a_pull_clients_train_alone(other: str, options: dict[str, Any]) -> None:
    plain, other_play = Play("fedproto", {"pull": 0.0}), Play(other, options)
    for server_round in plain.rounds():
        other_play.round(server_round)
        for client in range(3):
            assert_close(plain.kept(client)["model"], other_play.kept(client)["model"], tolerance=0.0)


def test_a_client_alone_is_pulled_towards_its_own_means() -> None:
    play = Play("fedproto", sizes=(5,), absent={})
    play.round(1)
    expected = measured(play, play.personalised(0), 0)
    for label, mean in expected.items():
        torch.testing.assert_close(play.strategy.memory["means"]["mean"][label], mean)


def test_only_means_and_counts_travel() -> None:
    play = Play("fedproto")
    for server_round in play.rounds():
        for messages_, first in ((play.sent, 2), (play.replied, 1)):
            for client, message in messages_.items():
                sets = sets_of(message.content)
                assert list(sets) == (["class_means"] if server_round >= first else [])
                assert not play.uploaded(client) | play.downloaded(client)
                assert all(
                    {k: v.shape for k, v in each.items()} == {"mean": (3, 5), "count": (3,)} for each in sets.values()
                )


def test_positions_of_sequences_that_do_not_count_have_no_distance() -> None:
    predictor = words_model(5)
    params = {key: value.detach() for key, value in predictor.state_dict().items()}
    tokens, targets = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[1, -100, 0], [-100, 2, 1]])
    means = {"mean": torch.arange(15.0).view(3, 5).double(), "count": torch.tensor([4, 2, 0])}
    rule = FedProtoRule(predictor, head="1", pull=2.0, predict="head")
    step = Step(
        params, {"class_means": means}, {}, tokens, targets, targets != -100, 0, Phase(), 0.1, Network(predictor)
    )
    features = predictor[0](tokens)
    apart = sum((features[i, j] - means["mean"][targets[i, j]]).square().mean() for i, j in ((0, 0), (0, 2), (1, 2)))
    torch.testing.assert_close(rule.loss(step), cross_entropy(predictor(tokens), targets) + 2 * apart / 4)


def test_a_head_that_is_not_linear_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head = 'fc\*' is fc1, fc2, fc3; it must be a plain linear layer; name that"):
        FedProto(Mlp(), head="fc*")
    with pytest.raises(ValueError, match="must be a linear layer with a bias"):
        FedProto(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False)), predict="means")
    with pytest.raises(ValueError, match="predict = \"mean\" must be 'head' or 'means'"):
        FedProto(Mlp(), predict="mean")
