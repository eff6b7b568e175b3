"""Plays a strategy on three clients through the real messages, client app and local engine, in float64.

The data are made up, the model is tiny, and one client is absent in one round, so that a test can write down what the
paper says in plain torch and compare every number.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from fedsim.config import Config, choices, making
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.federation.client.app import client_app
from fedsim.federation.client.state import personalised_model
from fedsim.federation.engines.local import LocalEngine
from fedsim.federation.federation import Federation
from fedsim.models.adapters import hold_bases_
from fedsim.models.architectures.experts import MixtureOfExperts
from fedsim.models.layers import Layers
from fedsim.models.params import Params, flat_copy, load_state_, state_of
from fedsim.seeds import derive, rng
from fedsim.strategy import Received, messages
from fedsim.training import Augmentation

FEATURES, CLASSES = 4, 3
CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor]


class Mlp(nn.Module):
    """Layers ``fc1``, ``fc2`` and the head ``fc3``; with ``bn`` after the first, if asked for."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, 6)
        if norm:
            self.bn = nn.BatchNorm1d(6)
        self.fc2 = nn.Linear(6, 5)
        self.fc3 = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.fc1(inputs)
        hidden = torch.tanh(self.bn(hidden) if hasattr(self, "bn") else hidden)
        return self.fc3(torch.tanh(self.fc2(hidden)))


def norm_mlp() -> nn.Module:
    """Like `Mlp`, with running statistics."""
    return Mlp(norm=True)


class Adapted(nn.Module):
    """A linear layer with LoRA, with the names that the library peft gives to its parts."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)
        self.scaling = {"default": 1.5}

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    def forward(self, inputs: Tensor) -> Tensor:
        added = self.lora_B["default"](self.lora_A["default"](inputs))
        return self.base_layer(inputs) + self.scaling["default"] * added


def lora_mlp() -> nn.Module:
    """Layers with the factors of LoRA on the frozen ``fc1`` and ``fc2``, and the head ``fc3``."""
    model = Mlp()
    model.fc1, model.fc2 = Adapted(model.fc1, 2), Adapted(model.fc2, 2)
    return model


def moe_mlp() -> nn.Module:
    """Like `Mlp`, with two of three experts and one that is always on in place of ``fc2``."""
    model = Mlp()
    model.fc2, model.fc3 = MixtureOfExperts(6, 2, 3, 2, 1, nn.Tanh(), 0.0), nn.Linear(6, CLASSES)
    return model


# Methods that are for models with the factors of LoRA.
ADAPTED = ("lora", "flexlora", "fedex_lora", "flora", "fedrot_lora")
# Methods of whose bytes some are not known before the run.
FOLLOWS_FROM_TRAINING = ("fedlama", "fedluar", "drift_gated", "barrier_gated", "heurpfedla")


def examples(client: int, part: str, n: int) -> Batch:
    """Return made-up inputs, [n, 4], float64, and targets; each client has a distribution of its own."""
    stream = rng(0, "made up", client, part)
    targets = stream.choice(CLASSES, size=n, p=np.roll([0.6, 0.3, 0.1], client))
    inputs = stream.normal(size=(n, FEATURES)) + targets[:, None] + 0.3 * client
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class _Transposed(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(1, 2)


def words_model(width: int) -> nn.Sequential:
    """Return an embedding of as many words as classes, and a head, ``1``, with logits [n, classes, length]."""
    return nn.Sequential(nn.Embedding(CLASSES, width), nn.Linear(width, CLASSES), _Transposed()).double()


def features(params: Params, inputs: Tensor) -> Tensor:
    """Return what the head of an `Mlp` takes, written down plainly."""
    hidden = torch.tanh(linear(inputs, params["fc1.weight"], params["fc1.bias"]))
    return torch.tanh(linear(hidden, params["fc2.weight"], params["fc2.bias"]))


def body(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the head of an `Mlp` takes, with a gradient."""
    return torch.tanh(network.fc2(torch.tanh(network.fc1(inputs))))  # type: ignore[operator]


def part(params: Params, layers: Sequence[str]) -> Params:
    """Return the entries of some layers."""
    return {key: value for key, value in params.items() if key.rpartition(".")[0] in layers}


def class_two_of_one(client: int, inputs: Tensor, targets: Tensor) -> Batch:
    """Leave class 2 to client 1, which is absent in the second round."""
    return inputs, targets if client == 1 else targets.clamp(max=1)


@dataclass
class MadeUpClient:
    """A client's examples, as `fedsim.federation.data.ClientData` gives them."""

    train: Batch
    validation: Batch
    test: Batch


@dataclass
class MadeUpData:
    """Stands for `fedsim.federation.data.FederatedData`."""

    clients: Sequence[MadeUpClient]
    device: torch.device = CPU
    augmentation: Augmentation = field(default_factory=Augmentation)
    dataset: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(classes=tuple("abc"), shape=(FEATURES,), task="classification")
    )

    def client(self, client: int) -> MadeUpClient:
        return self.clients[client]

    def test(self, count: int | None = None) -> Batch:
        inputs, targets = _to(self.device, examples(len(self.clients), "test", 6))
        return inputs[:count], targets[:count]

    def server(self) -> Batch:
        return _to(self.device, examples(len(self.clients), "server", 7))

    def train_sample(self, examples: int) -> Batch:
        inputs, targets = (torch.cat(parts) for parts in zip(*(each.train for each in self.clients), strict=True))
        return inputs[:examples], targets[:examples]


class Play:
    """A strategy and its clients, played round by round.

    Parameters
    ----------
    name, options
        Of the strategy, as in ``[strategy]``; also ``buffers`` and ``precision``.
    sizes
        Training examples of each client.
    absent
        By round: the client, or the clients, whose message gets lost.
    local
        Settings of ``[local]`` in addition to the harness's: lr 0.1, batches of 3, 2 epochs.
    cohort
        Clients that train together; 1 is one after the other.
    model
        Makes the model; it is drawn from a fixed seed, in float64.
    change
        Changes the made-up training examples of a client: ``change(client, inputs, targets) -> (inputs, targets)``.
    device
        Where the model and the data are.

    Attributes
    ----------
    sent, replied
        By client: the messages of the last round; an absent client has neither.
    received
        What the strategy made of the last round's replies.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        sizes: Sequence[int] = (5, 8, 3),
        rounds: int = 3,
        absent: Mapping[int, int | Sequence[int]] | None = None,
        local: Mapping[str, Any] | None = None,
        cohort: int = 1,
        model: Callable[[], nn.Module] = Mlp,
        change: Callable[[int, Tensor, Tensor], Batch] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.sizes = tuple(sizes)
        self.absent = {2: 1} if absent is None else dict(absent)
        self.config = _config(name, options or {}, len(sizes), rounds, local or {})
        parts = [
            MadeUpClient(*(_to(device, examples(k, part, n)) for part, n in _parts(size)))
            for k, size in enumerate(sizes)
        ]
        for client, part in enumerate(parts):
            if change is not None:
                part.train = change(client, *part.train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "harness"))
            self.model = model().double().eval().to(device)
        if making.strategy_class(self.config).holds_bases and model is not Mlp:
            hold_bases_(self.model)
        self.initial: Params = {key: value.clone() for key, value in state_of(self.model).items()}
        self.federation = Federation(
            config=self.config,
            data=MadeUpData(parts, device),  # type: ignore[arg-type]
            layers=Layers.of(self.model),
            initial=flat_copy(self.initial),
            device=device,
            _template=copy.deepcopy(self.model),
        )
        model, inputs = copy.deepcopy(self.model), self.federation.calibration()
        self.strategy = making.make_strategy(self.config, model, inputs)
        self.strategy.server_data = self.federation.data.server()
        self.strategy.set_global_model(self.federation.initial)
        self.engine = LocalEngine(lambda: client_app(self.federation, cohort), len(sizes), workers=1)
        weakref.finalize(self, self.engine.close)
        self.played = 0
        self.sent: dict[int, Message] = {}
        self.replied: dict[int, Message] = {}
        self.received = Received()

    def round(self, server_round: int) -> Params:
        """Play a round; return the new global model."""
        self.train(server_round)
        self.strategy.step(server_round, self.received)
        self.played = server_round
        return self.strategy.global_model

    def train(self, server_round: int) -> Received:
        """Let the clients train and the strategy read their replies, without averaging them."""
        asked = list(self.strategy.configure_train(server_round, self.strategy.arrays, ConfigRecord(), self.engine))
        there = [message for message in asked if message.metadata.dst_node_id in self.present(server_round)]
        self.sent = {message.metadata.dst_node_id: message for message in there}
        replies = list(self.engine.send_and_receive(there))
        self.replied = {reply.metadata.src_node_id: reply for reply in replies}
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        assert not failed, failed[0]
        self.received = self.strategy.receive(server_round, replies)
        assert set(self.received.left_out) == set(range(len(self.sizes))) - self.present(server_round)
        return self.received

    def rounds(self) -> Iterator[int]:
        """Play all rounds of the config; yield the number of each once it is played."""
        for server_round in range(1, self.config.rounds + 1):
            self.round(server_round)
            yield server_round

    def present(self, server_round: int) -> set[int]:
        """Return the clients that take part in a round."""
        gone = self.absent.get(server_round, ())
        return set(range(len(self.sizes))) - ({gone} if isinstance(gone, int) else set(gone))

    def train_set(self, client: int) -> Batch:
        """Return all training examples of a client."""
        return self.federation.data.client(client).train

    def batches(
        self,
        server_round: int,
        client: int,
        epochs: int | None = None,
        *,
        steps: int | None = None,
        stream: np.random.Generator | None = None,
    ) -> list[Batch]:
        """Return the mini-batches of a phase of a client's training, in their order.

        Parameters
        ----------
        epochs, steps
            As in the phase; without either, the config's epochs.
        stream
            Of a round with several phases: make it with `training_stream` and give it to each phase in turn.
        """
        stream = stream or self.training_stream(server_round, client)
        inputs, targets = self.train_set(client)
        n, size = len(targets), self.config.local.batch_size
        starts = list(range(0, n, size))
        if hasattr(self.model, "bn") and len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()  # batch normalisation takes no batch of one
        wanted = len(starts) * (epochs or self.config.local.epochs) if steps is None else steps
        drawn: list[Batch] = []
        while len(drawn) < wanted:
            order = torch.from_numpy(stream.permutation(n))
            cuts = [order[start:end] for start, end in zip(starts, [*starts[1:], n], strict=True)]
            drawn += [(inputs[cut], targets[cut]) for cut in cuts]
        return drawn[:wanted]

    def training_stream(self, server_round: int, client: int) -> np.random.Generator:
        """Return the stream that a client's training draws from in a round, at its beginning."""
        return rng(self.config.seed, "train", server_round, client)

    def kept(self, client: int) -> dict[str, Params]:
        """Return the parameter sets that a client keeps for itself, by the names of their records."""
        state = self.engine.context_of(client).state
        return {name: messages.decode(messages.arrays_of(state, name)) for name in state}

    def uploaded(self, client: int) -> Params:
        """Return the layers that a client sent in the last round."""
        return messages.decode(messages.arrays_of(self.replied[client].content, messages.ARRAYS))

    def downloaded(self, client: int) -> Params:
        """Return the layers of the model that a client got in the last round."""
        return messages.decode(messages.arrays_of(self.sent[client].content, messages.ARRAYS))

    def personalised(self, client: int) -> Params:
        """Return a client's own model as it would be evaluated now."""
        return personalised_model(self.federation, self._evaluations()[client], self.engine.context_of(client))

    def evaluate(self) -> dict[int, dict[str, float]]:
        """Return what the clients measure of their models now, by client: ``personalised/test/loss`` and others."""
        replies = list(self.engine.send_and_receive(self._evaluations()))
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        assert not failed, failed[0]
        return {reply.metadata.src_node_id: dict(reply.content[messages.METRICS]) for reply in replies}

    def save(self, folder: Path) -> None:
        """Write a checkpoint of everything."""
        Checkpoints(folder).save(self.played, self.strategy, self.engine, range(len(self.sizes)))

    def load(self, folder: Path, server_round: int) -> None:
        """Resume from a checkpoint of another play of the same method."""
        Checkpoints(folder).load(server_round, self.strategy, self.engine)
        self.played = server_round

    def _evaluations(self) -> list[Message]:
        arrays: ArrayRecord = self.strategy.arrays
        return list(self.strategy.configure_evaluate(self.played, arrays, ConfigRecord(), self.engine))


def network_of(model: nn.Module, params: Params) -> nn.Module:
    """Return a network of the model's architecture with these entries, in training mode."""
    network = copy.deepcopy(model).train()
    load_state_(network, params)
    return network


def cross_entropy_of(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return cross_entropy(network(batch[0]), batch[1])


def gradient(model: nn.Module, params: Params, batch: Batch) -> Params:
    """Return the gradient of the mean cross-entropy, by plain autograd in training mode; the model is only a shape."""
    network = network_of(model, params)
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(cross_entropy_of(network, batch), list(named.values())), strict=True))


def descend(
    model: nn.Module,
    params: Params,
    batches: Sequence[Batch],
    lr: float,
    loss: Callable[[nn.Module, Batch], Tensor] = cross_entropy_of,
    *,
    trained: Sequence[str] | None = None,
    mu: float = 0.0,
    toward: Params | None = None,
) -> Params:
    """Return all entries of the model after steps of plain SGD, one per batch, written down plainly.

    Parameters
    ----------
    loss
        Loss of the network on a batch.
    trained
        Names of the layers that are trained; all by default. The others stay as they are, running statistics too.
    mu, toward
        Weight and centre of the proximal term (mu / 2) ||w - toward||^2; ``params`` is the centre by default.
    """
    network = network_of(model, params)
    for name, module in network.named_children():
        module.train(trained is None or name in trained)
    chosen = {k: v for k, v in network.named_parameters() if trained is None or k.rpartition(".")[0] in trained}
    centre = params if toward is None else toward
    for batch in batches:
        gradients = torch.autograd.grad(loss(network, batch), list(chosen.values()))
        with torch.no_grad():
            for (key, value), gradient_ in zip(chosen.items(), gradients, strict=True):
                value -= lr * (gradient_ + mu * (value - centre[key]))
    return {key: value.detach().clone() for key, value in state_of(network).items()}


def mean_of(members: Sequence[Params], weights: Sequence[float]) -> Params:
    """Return the weighted mean, written down plainly; integer entries are left out."""
    total = sum(weights)
    keys = [key for key, value in members[0].items() if value.is_floating_point()]
    return {
        key: sum(weight / total * member[key] for weight, member in zip(weights, members, strict=True)) for key in keys
    }


def assert_close(found: Params, expected: Params, tolerance: float = 1e-10) -> None:
    """Check that two parameter sets have the same keys and values."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=lambda text, k=key: k + text)


def _to(device: torch.device, batch: Batch) -> Batch:
    return batch[0].to(device), batch[1].to(device)


def _parts(size: int) -> list[tuple[str, int]]:
    return [("train", size), ("validation", 2), ("test", 4)]


def _config(name: str, options: Mapping[str, Any], clients: int, rounds: int, local: Mapping[str, Any]) -> Config:
    settings = {
        "rounds": rounds,
        "clients": clients,
        "device": "cpu",
        "partition": {"scheme": "iid"},
        "local": {"lr": 0.1, "batch_size": 3, "epochs": 2, **local},
        "strategy": {"name": name, **options},
    }
    return choices.resolve(Config.parse(settings, "harness"))
