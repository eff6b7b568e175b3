"""FLAYER against the released client and server, written down plainly in numpy and torch."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.experiment.run import prepare
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import sets_of
from strategies import Flayer
from tests.strategies.harness import CLASSES, Batch, Mlp, Play, assert_close, network_of, norm_mlp

LR = 0.1


class Convolutional(nn.Module):
    """Layers ``conv`` with kernels of 3x3, ``point`` of 1x1, ``fc`` and the head ``out``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.point = nn.Conv2d(3, 2, 1)
        self.fc = nn.Linear(8, 5)
        self.out = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.point(torch.tanh(self.conv(inputs.view(-1, 1, 2, 2)))))
        return self.out(torch.tanh(self.fc(hidden.flatten(1))))


def head_epoch(play: Play, params: Params, client: int, server_round: int, head: str) -> Params:
    """Train the head for an epoch at a fifth of the step size, in the order of the rule's stream."""
    network = network_of(play.model, params).eval()
    inputs, targets = play.train_set(client)
    order = torch.from_numpy(rng(0, "rule", server_round, client).permutation(len(targets)))
    for chosen in order.split(3):
        network.zero_grad()
        cross_entropy(network(inputs[chosen]), targets[chosen]).backward()
        with torch.no_grad():
            for weight in network.get_submodule(head).parameters():
                weight -= LR / 5 * weight.grad
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def accuracy(play: Play, params: Params, client: int) -> float:
    inputs, targets = play.federation.data.client(client).validation
    return float((network_of(play.model, params).eval()(inputs).argmax(1) == targets).double().mean())


def trained(play: Play, params: Params, batches: list[Batch]) -> Params:
    network = network_of(play.model, params)
    children = list(network.children())
    for number, (inputs, targets) in enumerate(batches):
        network.zero_grad()
        cross_entropy(network(inputs), targets).backward()
        if number == 0:
            lrs = []
            for idx, layer in enumerate(children):
                norms = [float(weight.grad.norm(2)) for weight in layer.parameters()]
                each = [LR * (1 + (idx / (len(children) - 1)) * math.log(1 + 1 / norm)) for norm in norms]
                lrs.append(sum(each) / len(each))
            lrs[-1] = LR / 5
        with torch.no_grad():
            for layer, lr in zip(children, lrs, strict=True):
                for weight in layer.parameters():
                    weight -= lr * weight.grad
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def mask_of(change: np.ndarray, place: int, count: int) -> np.ndarray:
    """Return 1 for what the released client sends of a tensor, except that it sends 1x1 kernels."""
    ratio = 1 - max(min(place / count, 0.9), 0.1)
    mask = np.ones_like(change)
    if place >= count - 2 or change.ndim == 2:
        return mask
    rows = change.reshape(*change.shape[:2], -1) if change.ndim == 4 else change
    ones, n = mask.reshape(rows.shape), rows.shape[-1]
    prune = 0 if n == 1 else 1 if ratio < 1 / n else n - 1 if ratio > (n - 1) / n else int(np.round(n * ratio))
    np.put_along_axis(ones, np.argsort(rows, axis=-1)[..., :prune], 0, axis=-1)
    return mask


@pytest.mark.parametrize(("model", "head"), [(Mlp, "fc3"), (Convolutional, "out")])
def test_rounds_are_those_of_the_released_client_and_server(model: type[nn.Module], head: str) -> None:
    play = Play("flayer", model=model, sizes=(5, 8, 4), rounds=4)
    names = [name for name, _ in play.model.named_parameters()]
    averaged, own, accuracies = play.initial, [play.initial] * 3, [0.0] * 3

    def initialised(client: int, server_round: int) -> Params:
        a = accuracies[client]
        mixed = {k: a * own[client][k] + (1 - a) * averaged[k] if k.startswith(head) else averaged[k] for k in averaged}
        return head_epoch(play, mixed, client, server_round, head)

    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        sent: list[dict[str, np.ndarray]] = []
        masks: list[dict[str, np.ndarray]] = []
        for client in there:
            begin = initialised(client, server_round)
            accuracies[client] = accuracy(play, begin, client)
            own[client] = trained(play, begin, play.batches(server_round, client))
            changes = {k: (own[client][k] - begin[k]).abs().numpy() for k in names}
            masks.append({k: mask_of(changes[k], place, len(names)) for place, k in enumerate(names)})
            sent.append({k: own[client][k].numpy() * masks[-1].get(k, 1) for k in play.uploaded(client)})
            assert_close(play.uploaded(client), {k: torch.from_numpy(np.asarray(v)) for k, v in sent[-1].items()})
            # Two validation examples: 0, 1/2 or 1.
            assert float(play.kept(client)["accuracy"]["value"]) == accuracies[client]
        sizes = [play.sizes[client] for client in there]
        after = dict(averaged)
        for key in sent[0]:
            total = sum(n * values[key] for n, values in zip(sizes, sent, strict=True))
            counts = sum(n * mask.get(key, np.ones(())) for n, mask in zip(sizes, masks, strict=True))
            counts = np.broadcast_to(counts, np.shape(total))
            mean = np.divide(total, counts, out=averaged[key].numpy().copy(), where=counts > 0)
            after[key] = torch.from_numpy(mean)
        averaged = after
        assert_close({k: play.strategy.global_model[k] for k in sent[0]}, {k: averaged[k] for k in sent[0]})
    for client in range(3):
        expected, found = initialised(client, 5), play.personalised(client)
        assert_close({k: found[k] for k in names}, {k: expected[k] for k in names})
    assert sum(accuracies) > 0


OFF = {"own_head": False, "head_epochs": 0, "head_scale": 1.0, "depth": 0.0, "most_left_out": 0.0}


@pytest.mark.parametrize("model", [norm_mlp, Convolutional])
def test_with_all_of_it_off_it_is_fedavg_bit_by_bit(model: type[nn.Module]) -> None:
    play, average = Play("flayer", OFF, model=model), Play("full", model=model)
    for server_round in play.rounds():
        assert_close(play.strategy.global_model, average.round(server_round), tolerance=0.0)
        assert not any(sets_of(reply.content) for reply in play.replied.values())


def test_test_data_decide_nothing() -> None:
    """The authors' code takes the accuracy on them."""
    plain, changed = Play("flayer"), Play("flayer")
    for part in changed.federation.data.clients:  # type: ignore[attr-defined]
        part.test = (part.test[0], (part.test[1] + 1) % CLASSES)
    for server_round in plain.rounds():
        assert_close(changed.round(server_round), plain.strategy.global_model, tolerance=0.0)


def test_without_validation_data_and_with_momentum_it_is_refused(tiny) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="decides by validation data, but no client has any"):
        prepare(tiny(strategy={"name": "flayer"}, partition={"scheme": "iid", "validation": 0.0}))
    with pytest.raises(ConfigError, match=r"local\.momentum"):
        Play("flayer", local={"momentum": 0.9})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most_left_out": 1.1}, r"most_left_out = 1\.1 must be at least 0 and at most 1"),
        ({"head_scale": 0.0}, r"head_scale = 0\.0 must be greater than 0"),
        ({"head": "all"}, "head = 'all' leaves nothing to train in the other layers"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Flayer(Mlp(), **options)
