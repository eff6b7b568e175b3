"""The base of all strategies: which layers travel in a round, and how the server averages them.

A strategy is one short file that overrides a few of the pure hooks `Strategy.shared`, `Strategy.aggregate`,
`Strategy.local_plan`, `Strategy.for_client` and, where it has memory, `Strategy.state` and `Strategy.load_state`.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor, nn

from fedsim.errors import RunError
from fedsim.models import params
from fedsim.models.averaging import WeightedMean, weighted_mean
from fedsim.models.layers import LayerGroup, Layers
from fedsim.models.params import Params
from fedsim.strategy import messages
from fedsim.strategy.messages import Instructions, TensorArray
from fedsim.strategy.participants import draw_evaluated, draw_participants, draw_unseen
from fedsim.strategy.updates import ClientUpdate, check_average, read_metrics, read_update, weighted_metrics
from fedsim.training import ClientRule, Finished, Local, LocalPlan, Phase, Sets, Step

__all__ = [
    "Buffers",
    "ClientRule",
    "ClientUpdate",
    "Finished",
    "Local",
    "LocalPlan",
    "Measurable",
    "Phase",
    "Sets",
    "Step",
    "Strategy",
    "draw_unseen",
]

Buffers = Literal["shared", "personal", "recompute"]
Precision = Literal["float64", "float32"]
NODE_POLL_SECONDS = 0.5
logger = logging.getLogger(__name__)


@dataclass
class Received:
    """What came back in a round.

    Parameters
    ----------
    updates
        The valid ones, sorted by client; where they were averaged as they came, without their layers.
    left_out
        Why each other participant is left out of the average.
    average
        Of the shared layers, where they were averaged as they came.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    average: Params | None = None


@dataclass(frozen=True)
class Measurable:
    """What a strategy wants to know of a round's models as uploaded: the barrier of each layer.

    Parameters
    ----------
    on
        Each client's own validation data (``clients``), or a sample of those of all clients (``server``).
    layers
        Of which layers.
    examples
        At most: of each client, or in the sample.
    """

    on: Literal["clients", "server"]
    layers: LayerGroup
    examples: int


class Strategy(FlowerStrategy):
    """Federated averaging of the layers that `shared` names; clients keep all others.

    A client takes the layers that the server has averaged since that client last took part, and sends the
    layers that are shared in the round. By default all layers are shared, which is FedAvg.

    Parameters
    ----------
    model
        A model of the architecture that is trained; only its layers are read.
    participation
        Share of the clients that train in a round, in (0, 1], of those that are not unseen.
    seed
        Of the participants of all rounds.
    buffers
        Running statistics are averaged with their layer (``shared``), stay with the client (``personal``), or are
        computed anew from the client's training data (``recompute``).
    min_available_nodes
        Nodes to wait for before a round begins: in Flower's runtimes they appear one after the other.
    send_initial
        Whether a client's first message holds every layer. A client that can build the initial model by
        itself, as fedsim's do from the seed, needs only those that were averaged since.
    precision
        Of the sums in the average.
    evaluate_clients
        How many clients are evaluated, the same in each round, and at most as many unseen ones: all by default.
    unseen
        Share of the clients that never train, in [0, 1), at least one if it is not 0; they are evaluated only.
    inputs
        Inputs that the server holds, shape [n, ...], as the model takes them: for strategies that trace the model or
        measure it. The others need none.

    Attributes
    ----------
    global_model
        The server's model, all entries of the state dict.
    clients
        How many clients there are, known from the first round on.
    partial
        Whether a client may leave out some of the layers that it was asked for, and send more sets or fewer than
        others; `aggregate` must then be one of the strategy's own.

    Raises
    ------
    ValueError
        If ``participation``, ``unseen`` or ``min_available_nodes`` is out of range.
    """

    partial = False

    def __init__(
        self,
        model: nn.Module,
        *,
        participation: float = 1.0,
        seed: int = 0,
        buffers: Buffers = "shared",
        min_available_nodes: int = 1,
        send_initial: bool = True,
        precision: Precision = "float64",
        evaluate_clients: int | None = None,
        unseen: float = 0.0,
        inputs: Tensor | None = None,
    ) -> None:
        if not 0 < participation <= 1:
            raise ValueError(f"participation = {participation} must be greater than 0 and at most 1")
        if not 0 <= unseen < 1:
            raise ValueError(f"unseen = {unseen} must be at least 0 and less than 1; 0 lets all clients train")
        if min_available_nodes < 1:
            raise ValueError(f"min_available_nodes = {min_available_nodes} must be at least 1")
        self.layers = Layers.of(model)
        self.participation = participation
        self.seed = seed
        self.buffers = buffers
        self.min_available_nodes = min_available_nodes
        self.send_initial = send_initial
        self.precision = torch.float64 if precision == "float64" else torch.float32
        self.evaluate_clients = evaluate_clients
        self.unseen = unseen
        self.inputs = inputs
        self.global_model: Params = {}
        self.clients = 0
        self._averaged_in: dict[str, int] = {}
        # By client: the round of its last valid update, 0 without one.
        self._last_round = np.zeros(0, dtype=np.int64)
        self._seen: Sequence[int] = ()
        self._node_of: list[int] = []
        self._clients: dict[int, int] = {}
        self._participants: list[int] = []
        self._upload: tuple[str, ...] = ()
        self._keep: tuple[str, ...] = ()
        self._arrays = ArrayRecord()

    # Hooks: pure functions of the round and the updates.

    def shared(self, server_round: int) -> LayerGroup:
        """Return the layers that clients send and the server averages in this round."""
        return self.layers.group("all")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the new value of the shared layers; by default the mean weighted by examples.

        Parameters
        ----------
        updates
            At least one, sorted by client, all with the same keys and shapes and finite.
        """
        members, weights = [update.shared for update in updates], [update.num_examples for update in updates]
        return weighted_mean(members, weights, self.precision)

    def kept(self, server_round: int) -> LayerGroup:
        """Return the layers whose value a client keeps for itself: by default those that it does not share.

        It takes a shared layer from the server before it needs it again, so that what a strategy stores for each
        client is its personal layers. A strategy whose clients need their own value of a shared layer, or whose
        `aggregate` leaves one out, keeps that layer too.
        """
        shared = set(self.shared(server_round))
        return LayerGroup("kept", tuple(name for name in self.layers.names if name not in shared))

    def shared_by(self, server_round: int, client: int) -> LayerGroup:
        """Return the layers of `shared` that this client sends: by default all of them.

        Where clients send different layers, `aggregate` must be one of the strategy's own.
        """
        return self.shared(server_round)

    def local_plan(self, server_round: int) -> LocalPlan:
        """Return what clients do in this round; by default they train all layers."""
        return LocalPlan()

    def client_rule(self) -> ClientRule:
        """Return what clients do beyond the plan; by default nothing.

        Clients build it for themselves, from the strategy's name and options, so it must not depend on what the
        strategy remembers.
        """
        return ClientRule()

    def fine_tuning(self) -> str:
        """Return the layer group that a client fine-tunes once training is over: by default all layers."""
        return "all"

    def for_client(self, server_round: int, client: int) -> Params:
        """Return what a client takes from the server when it next takes part, at the earliest in ``server_round``.

        By default the layers that were averaged since it last took part, or ever if it never has.
        """
        last = self._last_round_of(client)
        fresh = [name for name in self.layers.names if self._averaged_in.get(name, -1) >= last]
        keys = self._keys(fresh)
        return {key: self.global_model[key] for key in keys}

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Return the named parameter sets that the client's rule gets from the server beside layers of the model.

        They travel in each round in which the client takes part, and count as traffic.
        """
        return {}

    def measurable(self, server_round: int) -> Measurable | None:
        """Return which layers' barriers the strategy wants before it aggregates this round: by default none."""
        return None

    def take_barriers(self, server_round: int, barriers: Mapping[str, float]) -> None:
        """Take the barriers that `measurable` asked for.

        Parameters
        ----------
        barriers
            By layer: by how many nats a client's loss rises if the layer comes from the average of the uploaded models,
            in the mean over the clients, weighted by training examples.
        """

    def state(self) -> Params:
        """Return what the strategy itself remembers between rounds, as named tensors for a checkpoint."""
        return {}

    def load_state(self, state: Params) -> None:
        """Take the memory that `state` returned."""

    # One round, in the terms of fedsim.

    def receive(self, server_round: int, replies: Iterable[Message], *, in_order: bool = False) -> Received:
        """Check the replies of a round.

        Parameters
        ----------
        in_order
            Say that the replies come in the order of the clients and that nobody needs the updates' layers. If
            `aggregate` is the default, they are averaged as they come, so that memory does not grow with their number.
        """
        received = Received(left_out=dict.fromkeys(self._participants, "it did not reply"))
        every: dict[LayerGroup, Params] = {}
        mean = WeightedMean(self.precision) if in_order and type(self).aggregate is Strategy.aggregate else None
        for reply in replies:
            client = self._clients[reply.metadata.src_node_id]
            group = self.shared_by(server_round, client)
            if group not in every:
                every[group] = {key: self.global_model[key] for key in self._keys(group)}
            try:
                update = read_update(client, reply, every[group], partial=self.partial)
            except ValueError as error:
                received.left_out[client] = str(error)
                continue
            received.left_out.pop(client, None)
            if mean is not None:
                mean.add(update.shared, update.num_examples)
                update = replace(update, shared={}, probe={}, sets={})
            received.updates.append(update)
        for client, reason in received.left_out.items():
            logger.warning("round %d: client %d is left out of the average: %s", server_round, client, reason)
        # A float sum depends on its order, and replies come in any.
        received.updates.sort(key=lambda update: update.client)
        if mean is not None and received.updates:
            received.average = mean.result()
        return received

    def step(self, server_round: int, received: Received) -> None:
        """Average valid updates into the global model, and remember who took part and what was averaged.

        Raises
        ------
        RunError
            If `aggregate` returns something that is not a part of the model, or leaves out what clients do not keep.
        """
        if not received.updates:
            return
        where = f"{type(self).__name__}.aggregate"
        averaged = self.aggregate(server_round, received.updates) if received.average is None else received.average
        averaged = check_average(averaged, self.global_model, where)
        if lost := set(self._upload) - set(self._keep) - averaged.keys():
            raise RunError(
                f"{where} returns no value for {min(lost)!r}, which clients have shared and do not keep; return one, "
                f"or let {type(self).__name__}.kept name its layer"
            )
        self.set_global_model(params.combine(self.global_model, averaged))
        self._averaged_in |= {self.layers.of_key(key): server_round for key in averaged}
        took_part = [update.client for update in received.updates]
        self._last_round = np.pad(self._last_round, (0, max(0, took_part[-1] + 1 - len(self._last_round))))
        self._last_round[took_part] = server_round

    def progress(self) -> Params:
        """Return who took part when and what was averaged when, as named tensors for a checkpoint."""
        return {
            "averaged_in": torch.tensor([self._averaged_in.get(name, -1) for name in self.layers.names]),
            "last_round": torch.from_numpy(self._last_round),
        }

    def load_progress(self, progress: Params) -> None:
        """Take what `progress` returned."""
        rounds = zip(self.layers.names, progress["averaged_in"].tolist(), strict=True)
        self._averaged_in = {name: server_round for name, server_round in rounds if server_round >= 0}
        self._last_round = progress["last_round"].numpy().copy()

    def set_global_model(self, model: Params) -> None:
        """Make ``model``, with all entries of the state dict, the global model; a tied tensor under its first name."""
        # A second name would keep its old value when the first is averaged, and a client would load the old one.
        model = {key: value for key, value in model.items() if key not in self.layers.aliases}
        # Entries that did not change keep their encoded form.
        encoded = {
            key: self._arrays[key] if key in self._arrays and self.global_model[key] is value else TensorArray(value)
            for key, value in model.items()
        }
        self.global_model, self._arrays = model, messages.record_of(encoded)

    @property
    def arrays(self) -> ArrayRecord:
        """The global model as a Flower record."""
        return self._arrays

    # Flower's interface.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write a message to each participant; nodes count as clients from 0, in the order of their ids."""
        self._take(arrays)
        nodes = self._nodes(grid)
        self._participants = draw_participants(self.seed, server_round, len(nodes), self.participation, self.unseen)
        self.clients = len(nodes)
        self._upload = self._keys(self.shared(server_round))
        kept = self.layers.keys(self.kept(server_round))
        self._keep = (*kept, *(key for key in self.global_model if key not in kept and key not in self._upload))
        plan = self.local_plan(server_round)
        probe, measure = (bool(config.get(name, False)) for name in (messages.PROBE, messages.MEASURE))
        settings: dict[LayerGroup, ConfigRecord] = {}
        records, sent = _Records(self), []
        for client in self._participants:
            group = self.shared_by(server_round, client)
            if group not in settings:  # one record for all: a message costs little beside what it carries
                instructions = Instructions(server_round, self._keys(group), self._keep, plan, probe, measure)
                settings[group] = ConfigRecord({**config, **instructions.write()})
            content = {messages.ARRAYS: records.of(self._down(server_round, client))}
            content |= records.sets(self.sets_for(server_round, client))
            sent.append(_message(nodes[client], MessageType.TRAIN, content, settings[group]))
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the valid replies; clients that failed are left out with a warning."""
        received = self.receive(server_round, replies)
        if not received.updates:
            return None, None
        self.step(server_round, received)
        metrics = weighted_metrics([(update.num_examples, update.metrics) for update in received.updates])
        return self.arrays, messages.measurements(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write a message to each client that is evaluated: what it would take next, and the global model's rest."""
        self._take(arrays)
        nodes = self._nodes(grid)
        settings = ConfigRecord({**config, messages.SERVER_ROUND: server_round})
        settings_unseen = ConfigRecord({**settings, messages.UNSEEN: True})
        unseen = set(draw_unseen(self.seed, len(nodes), self.unseen))
        records, evaluations = _Records(self), []
        for client in draw_evaluated(self.seed, len(nodes), self.evaluate_clients, self.unseen):
            taken = self._down(server_round + 1, client)
            rest = {key: value for key, value in self.global_model.items() if taken.get(key) is not value}
            content = {messages.ARRAYS: records.of(taken), messages.GLOBAL: records.of(rest)}
            content |= records.sets(self.sets_for(server_round + 1, client))
            chosen = settings_unseen if client in unseen else settings
            evaluations.append(_message(nodes[client], MessageType.EVALUATE, content, chosen))
        return evaluations

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return each metric's mean over clients, weighted by examples."""
        metrics = [read_metrics(reply) for reply in replies if reply.has_content()]
        weighted = [(values.pop(messages.NUM_EXAMPLES, 0.0), values) for values in metrics]
        return messages.measurements(weighted_metrics(weighted)) if weighted else None

    def summary(self) -> None:
        """Log the layers that are shared in the first round."""
        group = self.shared(1)
        logger.info("%s shares %d of %d layers in round 1", type(self).__name__, len(group), len(self.layers))

    def _take(self, arrays: ArrayRecord) -> None:
        """Adopt arrays that were handed in from outside, as Flower's own loop does in round 1."""
        if arrays is not self._arrays:
            self.set_global_model(messages.decode(arrays))

    def _nodes(self, grid: Grid) -> Sequence[int]:
        """Return the node of each client; a node stays the same client even if others appear later."""
        # fedsim's engines give a range, which is compared with the last one in no time, however long it is.
        while len(nodes := _sequence(grid.get_node_ids())) < self.min_available_nodes:
            logger.info("waiting for nodes: %d of %d are there", len(nodes), self.min_available_nodes)
            time.sleep(NODE_POLL_SECONDS)
        if nodes != self._seen:
            for node in sorted(set(nodes) - self._clients.keys()):
                self._clients[node] = len(self._clients)
            self._seen, self._node_of = nodes, list(self._clients)
        return self._node_of

    def _last_round_of(self, client: int) -> int:
        return int(self._last_round[client]) if client < len(self._last_round) else 0

    def _down(self, server_round: int, client: int) -> Params:
        own = self.for_client(server_round, client)
        first = self.send_initial and self._last_round_of(client) == 0
        return self.global_model | own if first else own

    def _keys(self, group: Iterable[str]) -> tuple[str, ...]:
        return self.layers.keys(group, buffers=self.buffers == "shared")


class _Records:
    """The parts of a global model that travel in a round as Flower records: clients that take the same share one."""

    def __init__(self, strategy: Strategy) -> None:
        self._model, self._arrays = strategy.global_model, strategy.arrays
        self._known: dict[tuple[str, ...], ArrayRecord] = {}
        self._known_sets: dict[tuple[object, ...], ArrayRecord] = {}

    def of(self, part: Params) -> ArrayRecord:
        if any(value is not self._model.get(key) for key, value in part.items()):
            return messages.encode(part)  # a client's own
        keys = tuple(part)
        if keys not in self._known:
            self._known[keys] = messages.record_of({key: self._arrays[key] for key in keys})
        return self._known[keys]

    def sets(self, sets: Sets) -> dict[str, ArrayRecord]:
        """Return named parameter sets as records; those with the same tensors share one."""
        found = {}
        for name, entries in sets.items():
            same = (name, *(id(value) for value in entries.values()))
            if same not in self._known_sets:  # which also holds the tensors, so that no other has their identities
                self._known_sets[same] = messages.encode(dict(entries))
            found[name] = self._known_sets[same]
        return found


def _sequence(nodes: Iterable[int]) -> Sequence[int]:
    return nodes if isinstance(nodes, range) else list(nodes)


def _message(node: int, kind: str, records: Mapping[str, ArrayRecord], settings: ConfigRecord) -> Message:
    content = RecordDict({**records, messages.CONFIG: settings})
    return Message(content=content, dst_node_id=node, message_type=kind, group_id=str(settings[messages.SERVER_ROUND]))
