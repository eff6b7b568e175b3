"""FedMA against its algorithm 1, with the paper's whole cost and every permutation tried."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext as does_not_raise
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from fedsim.alignment.symmetries.chain import check_chain
from fedsim.federation.federation import Federation
from fedsim.models.architectures import MODELS
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import sets_of
from strategies import FedMa
from strategies.fedma import _matched
from tests.strategies.agreement import assert_trains_alike
from tests.strategies.harness import CLASSES, FEATURES, Mlp, Play, assert_close, descend

LR, LAYERS = 0.1, ("fc1", "fc2", "fc3")
# Of the paper's cost: variance of a client's neurons, variance of the global ones, and the rate of new ones.
SIGMA, SIGMA_0, GAMMA, ITERATIONS = 0.7, 1.3, 5.0, 2


class ConvChain(nn.Module):
    """A convolution, pooling and a linear layer, in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 3, 2, padding=1)
        self.conv2 = nn.Conv1d(3, 4, 2, bias=False)
        self.fc = nn.Linear(4 * (FEATURES // 2), CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.conv1(inputs.view(-1, 1, FEATURES)))
        return self.fc(torch.nn.functional.max_pool1d(torch.tanh(self.conv2(hidden)), 2).flatten(1))


def rows(params: Params, layer: str) -> np.ndarray:
    """Return each neuron's weights and bias."""
    keys = [key for key in (f"{layer}.weight", f"{layer}.bias") if key in params]
    return torch.cat(
        [params[key].flatten(1) if params[key].ndim > 1 else params[key][:, None] for key in keys], 1
    ).numpy()


def best(score: np.ndarray) -> list[int]:
    """Return, of all permutations, the one with the largest sum of ``score[place, neuron]``."""
    n = len(score)
    every = np.array(list(itertools.permutations(range(n))))
    return every[score[np.arange(n), every].sum(1).argmax()].tolist()


def paper_cost(own: np.ndarray, others: np.ndarray, count: int, clients: int) -> np.ndarray:
    """Return the paper's cost of giving neuron l to global neuron i, for neurons that there are already."""
    g, s = others / SIGMA, 1 / SIGMA_0 + count / SIGMA
    with_own = ((g[:, None] + own[None] / SIGMA) ** 2).sum(2) / (s + 1 / SIGMA)
    return with_own - (g**2).sum(1)[:, None] / s + 2 * np.log(count / (clients - count))


def matched(clients: list[np.ndarray], stream: np.random.Generator) -> list[list[int]]:
    orders = [list(range(len(clients[0])))]
    for j, own in enumerate(clients[1:], start=1):
        before = sum(clients[k][orders[k]] for k in range(j))
        orders.append(best(paper_cost(own, before, j, len(clients))))
    for _ in range(ITERATIONS):
        for j in stream.permutation(len(clients)):
            others = sum(clients[k][orders[k]] for k in range(len(clients)) if k != j)
            orders[j] = best(paper_cost(clients[j], others, len(clients) - 1, len(clients)))
    return orders


def reordered(weight: Tensor, order: list[int]) -> Tensor:
    """Return a weight whose inputs, blocks of equal size, come in a new order."""
    size = weight.shape[1] // len(order)
    columns = [order[block] * size + place for block in range(len(order)) for place in range(size)]
    return weight[:, columns]


def test_two_passes_are_those_of_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 1 comes back to a layer that was matched twice without it."""
    play = Play("fedma", {"iterations": ITERATIONS}, rounds=6, absent={2: 1, 3: 1, 4: 1, 5: 0})
    own = begin_differently(play, monkeypatch, noise=0.3)
    model, last, averaged_in = play.initial, [0] * 3, dict.fromkeys(LAYERS, -1)
    known: dict[int, tuple[str, list[int]]] = {}
    for server_round in play.rounds():
        position, present = (server_round - 1) % 3, sorted(play.present(server_round))
        layer = LAYERS[position]
        for client in present:
            start, order = dict(own[client]), None
            for name in LAYERS:
                mine = {key: own[client][key] for key in own[client] if key.startswith(name)}
                if order is not None:
                    mine[f"{name}.weight"] = reordered(mine[f"{name}.weight"], order)
                order = None
                if averaged_in[name] >= last[client] and name != "fc3":
                    if known.get(client, ("", []))[0] == name:
                        order = known[client][1]
                    else:  # it was not there, and finds the nearest neurons itself
                        mine_rows, new_rows = rows(mine, name), rows(model, name)
                        order = best(-((new_rows[:, None] - mine_rows[None]) ** 2).sum(2))
                start |= {k: model[k] for k in mine} if averaged_in[name] >= last[client] else mine
            own[client] = descend(play.model, start, play.batches(server_round, client), LR, trained=LAYERS[position:])
            last[client] = server_round
            assert_close(play.uploaded(client), {k: v for k, v in own[client].items() if k.startswith(layer)})
        if layer == "fc3":
            counts = torch.stack([torch.bincount(play.train_set(k)[1], minlength=CLASSES) for k in present]).double()
            shares = counts / counts.sum(0)
            new = {
                key: torch.stack(
                    [
                        (shares[:, c, None] * torch.stack([own[k][key][c].reshape(-1) for k in present])).sum(0)
                        for c in range(CLASSES)
                    ]
                ).reshape(model[key].shape)
                for key in ("fc3.weight", "fc3.bias")
            }
        else:
            orders = matched([rows(own[client], layer) for client in present], rng(0, "matching", server_round))
            known = {client: value for client, value in known.items() if value[0] != layer}
            known |= {client: (layer, order) for client, order in zip(present, orders, strict=True)}
            new = {
                key: sum(own[client][key][order] for client, order in zip(present, orders, strict=True)) / len(present)
                for key in (f"{layer}.weight", f"{layer}.bias")
            }
        model = model | new
        averaged_in[layer] = server_round
        assert_close(play.strategy.global_model, model)


def test_neurons_are_matched_by_the_papers_cost() -> None:
    for seed in range(5):
        clients = [np.random.default_rng((seed, client)).normal(size=(5, 3)) for client in range(4)]
        found = _matched(clients, ITERATIONS, np.random.default_rng(seed))
        assert [order.tolist() for order in found] == matched(clients, np.random.default_rng(seed))


def begin_differently(play: Play, monkeypatch: pytest.MonkeyPatch, noise: float = 0.0) -> list[Params]:
    """Let each client begin with the initial model's neurons in an order of its own, and some noise."""
    models = []
    for client in range(3):
        stream = np.random.default_rng(client)
        chain = [key.removesuffix(".weight") for key in play.initial if key.endswith(".weight")]
        copy = shuffled(play.initial, chain, stream)
        models.append({key: v + noise * torch.from_numpy(stream.normal(size=v.shape)) for key, v in copy.items()})
    monkeypatch.setattr(Federation, "initial_of", lambda _, client: models[client])
    return models


def shuffled(params: Params, chain: list[str], stream: np.random.Generator) -> Params:
    """Return a model that computes the same with its neurons in another order."""
    copy, order = dict(params), None
    for layer in chain:
        weight = f"{layer}.weight"
        if order is not None:
            copy[weight] = reordered(copy[weight], order)
        if layer != chain[-1]:
            order = stream.permutation(len(copy[weight])).tolist()
            for key in (weight, f"{layer}.bias"):
                if key in copy:
                    copy[key] = copy[key][order]
    return copy


@pytest.mark.parametrize("build", [Mlp, ConvChain])
def test_shuffled_copies_of_a_model_become_that_model_again(
    build: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A step this small changes no weight.
    play = Play("fedma", absent={}, local={"lr": 1e-30}, model=build)
    copies = begin_differently(play, monkeypatch)
    inputs = torch.from_numpy(np.random.default_rng(9).normal(size=(7, FEATURES)))
    expected = torch.func.functional_call(play.model, play.initial, (inputs,))
    for copy in copies:
        torch.testing.assert_close(torch.func.functional_call(play.model, copy, (inputs,)), expected)
    for _ in play.rounds():
        pass
    found = torch.func.functional_call(play.model, play.strategy.global_model, (inputs,))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert any(not torch.allclose(play.strategy.global_model[key], value) for key, value in play.initial.items())


def test_only_one_layer_travels_and_what_is_matched_is_frozen() -> None:
    play = Play("fedma", absent={}, rounds=4)
    for server_round in play.rounds():
        layer = LAYERS[(server_round - 1) % 3]
        for client in range(3):
            sent = sets_of(play.replied[client].content)
            assert {key.partition(".")[0] for key in play.uploaded(client)} == {layer}
            assert set(sent) == ({"class_counts"} if layer == "fc3" else set())
            for matched_layer in LAYERS[: (server_round - 1) % 3]:
                key = f"{matched_layer}.weight"
                assert torch.equal(play.kept(client)["model"][key], play.strategy.global_model[key])


def test_a_permutation_that_was_applied_is_not_applied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second reply of a client gets lost, so that its first permutation is sent to it again."""
    play = Play("fedma", absent={})
    begin_differently(play, monkeypatch)
    play.round(1)
    asked = play.strategy.configure_train(2, play.strategy.arrays, ConfigRecord(), play.engine)
    replies = [reply for reply in play.engine.send_and_receive(asked) if reply.metadata.src_node_id != 2]
    play.strategy.step(2, play.strategy.receive(2, replies))
    play.played = 2
    orders = play.strategy.memory["2"]
    assert set(orders) == {"fc1"}
    assert orders["fc1"].tolist() != list(range(6))
    own, new = play.kept(2)["model"], play.strategy.global_model
    order = best(-((rows(new, "fc2")[:, None] - rows(own, "fc2")[None]) ** 2).sum(2))
    expected = {**new, "fc3.weight": reordered(own["fc3.weight"], order), "fc3.bias": own["fc3.bias"]}
    assert_close(play.personalised(2), expected)


def test_a_permutation_is_forgotten_once_its_layer_is_matched_without_the_client() -> None:
    play = Play("fedma", rounds=4, absent={2: 1, 3: 1, 4: 1})
    for server_round in play.rounds():
        layers = [set(play.strategy.sets_for(server_round + 1, client).get("permutation", {})) for client in (0, 1)]
        assert (
            layers
            == {1: [{"fc1"}] * 2, 2: [{"fc2"}, {"fc1"}], 3: [{"fc2"}, {"fc1"}], 4: [{"fc1"}, set()]}[server_round]
        )


def test_one_client_alone_is_in_its_own_order() -> None:
    neurons = np.random.default_rng(0).normal(size=(5, 3))
    assert _matched([neurons], 3, np.random.default_rng(1))[0].tolist() == [0, 1, 2, 3, 4]


def test_a_class_that_nobody_has_is_averaged_equally() -> None:
    def without_two(client: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, targets % 2

    play = Play("fedma", absent={}, change=without_two)
    for _ in play.rounds():
        pass
    rows_of_two = torch.stack([play.uploaded(client)["fc3.weight"][2] for client in range(3)])
    torch.testing.assert_close(play.strategy.global_model["fc3.weight"][2], rows_of_two.mean(0))


def test_a_cohort_trains_as_one_client_after_the_other() -> None:
    alone, together = (Play("fedma", rounds=4, cohort=cohort, model=ConvChain) for cohort in (1, 3))
    assert_trains_alike(alone, together)


def test_a_run_resumes_from_its_checkpoint_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = Play("fedma"), Play("fedma")
    begin_differently(whole, monkeypatch, noise=0.3)
    for server_round in (1, 2):
        whole.round(server_round)
    whole.save(tmp_path)
    resumed.load(tmp_path, 2)
    assert len(resumed.strategy.state()) == 3
    assert_close(resumed.strategy.state(), whole.strategy.state(), 0)
    assert_close(resumed.personalised(1), whole.personalised(1), 0)
    assert_close(resumed.round(3), whole.round(3), 0)


class Residual(Mlp):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.fc1(inputs))
        return self.fc3(torch.tanh(self.fc2(hidden)) + hidden[:, :5])


class Skip(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return self[1](inputs + self[0](inputs))


class Softmax(Mlp):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(inputs).softmax(1)))


class Branching(Mlp):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs if inputs.sum() > 0 else -inputs)


class OtherOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(inputs)))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def parametrised(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), norm(nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (parametrised(nn.utils.parametrizations.weight_norm), "the weight of '2' is computed"),
        (parametrised(nn.utils.parametrizations.spectral_norm), "the weight of '2' is computed"),
        (Mlp(norm=True), "the layer 'bn' is a BatchNorm1d"),
        (Residual(), "'getitem' does not take what 'tanh_1' gives alone"),
        (Skip(nn.Linear(4, 4), nn.Linear(4, 3)), "'add' does not take what '_0' gives alone"),
        (Softmax(), "'softmax' is between them"),
        (Branching(), "cannot be traced"),
        (OtherOrder(), "they are called as first, last"),
        (tied(), "'2.weight' is tied"),
        (nn.Sequential(nn.Conv1d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, 2)), "'0' has groups = 2"),
        (nn.Sequential(nn.Conv1d(1, 4, 1), nn.ReLU(), nn.Linear(4, 3)), "the inputs of '2' are not the outputs of '0'"),
        (nn.Sequential(nn.Conv1d(1, 4, 1), nn.Flatten(2), nn.Linear(4, 3)), "'1|_1' is between them"),
        (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2), nn.Linear(2, 3)), "is between them"),
    ],
)
def test_a_model_that_is_no_chain_is_an_error_that_says_why(model: nn.Module, problem: str) -> None:
    with pytest.raises(ValueError, match=f"fedma needs linear and convolutional layers .*({problem})"):
        FedMa(model)


def test_the_chains_of_the_catalogue_are_chains() -> None:
    for name in ("mlp", "cnn", "lenet5", "vgg11"):
        with torch.device("meta"):  # which draws no weights
            model = MODELS[name]((1, 28, 28), 10)
        with does_not_raise():
            check_chain(model, Layers.of(model), "fedma")


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="iterations = -1 must be at least 0"):
        FedMa(Mlp(), iterations=-1)
