"""FedNTD and FedLC against their equations, by plain autograd and numbers of each class."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.training.context import Network, Step
from fedsim.training.plan import Phase
from strategies.label_skew import FedNtdRule
from tests.strategies.harness import CLASSES, Batch, Mlp, Play, assert_close, descend, mean_of, network_of


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (0.3, 3.0)])
def test_fedntd_distils_all_classes_but_the_true_one(beta: float, temperature: float) -> None:
    play = Play("fedntd", {"beta": beta, "temperature": temperature})
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        frozen = network_of(play.model, expected)

        def loss(network: nn.Module, batch: Batch, frozen: nn.Module = frozen) -> Tensor:
            inputs, targets = batch
            logits, taught = network(inputs), frozen(inputs).detach()
            divergences = []
            for row in range(len(targets)):  # written out, example by example
                others = [c for c in range(CLASSES) if c != int(targets[row])]
                own, old = (torch.softmax(each[row, others] / temperature, 0) for each in (logits, taught))
                divergences.append((old * (old.log() - own.log())).sum())
            return cross_entropy(logits, targets) + beta * temperature**2 * torch.stack(divergences).mean()

        trained = [descend(play.model, expected, play.batches(server_round, client), 0.1, loss) for client in there]
        expected = mean_of(trained, [play.sizes[client] for client in there])
        assert_close(play.strategy.global_model, expected)


def test_fedntd_leaves_out_targets_that_do_not_count() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.embedding(inputs).transpose(1, 2)

    torch.manual_seed(0)
    model, other = Words(), Words()
    params, received = dict(model.state_dict()), dict(other.state_dict())
    inputs, targets = torch.randint(7, (5, 3)), torch.randint(4, (5, 3))
    targets[:, 2] = -100

    def loss(inputs: Tensor, targets: Tensor, real: Tensor | None) -> Tensor:
        rule = FedNtdRule(model, beta=1.0, temperature=2.0)
        step = Step(params, {"received": received}, {}, inputs, targets, real, 0, Phase(), 0.1, Network(model))
        return rule.loss(step)

    torch.testing.assert_close(loss(inputs, targets, targets != -100), loss(inputs[:, :2], targets[:, :2], None))


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_fedlc_lowers_the_logits_of_rare_classes(tau: float) -> None:
    play = Play("fedlc", {"tau": tau, "absent_count": 0.01})
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = []
        for client in there:
            labels = play.train_set(client)[1].tolist()
            margins = torch.tensor(
                [tau * max(labels.count(c), 0.01) ** -0.25 for c in range(CLASSES)], dtype=torch.float64
            )

            def loss(network: nn.Module, batch: Batch, margins: Tensor = margins) -> Tensor:
                return cross_entropy(network(batch[0]) - margins, batch[1])

            trained.append(descend(play.model, expected, play.batches(server_round, client), 0.1, loss))
        expected = mean_of(trained, [play.sizes[client] for client in there])
        assert_close(play.strategy.global_model, expected)


@pytest.mark.parametrize(("name", "options"), [("fedntd", {"beta": 0.0}), ("fedlc", {"tau": 0.0})])
def test_without_their_term_they_are_fedavg(name: str, options: dict[str, float]) -> None:
    skewed, average = Play(name, options, model=Mlp), Play("full", model=Mlp)
    for server_round in skewed.rounds():
        assert_close(skewed.strategy.global_model, average.round(server_round), tolerance=1e-14)
