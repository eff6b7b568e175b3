"""The base of all strategies: which layers travel in a round, and how the server averages them.

A strategy is one short file that overrides a few of the pure hooks `Strategy.shared`, `Strategy.aggregate`,
`Strategy.local_plan`, `Strategy.for_client` and, where it has memory, `Strategy.state` and `Strategy.load_state`.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import nn

from fedsim import messages, params, seeds
from fedsim.layers import LayerGroup, Layers
from fedsim.messages import Instructions
from fedsim.params import Params
from fedsim.training import LocalPlan, Phase
from fedsim.updates import ClientUpdate, check_average, read_metrics, read_update, weighted_metrics

__all__ = ["Buffers", "ClientUpdate", "LocalPlan", "Phase", "Strategy", "draw_participants"]

Buffers = Literal["shared", "personal", "recompute"]
NODE_POLL_SECONDS = 0.5
logger = logging.getLogger(__name__)


def draw_participants(seed: int, server_round: int, clients: int, participation: float) -> list[int]:
    """Return the clients of a round in ascending order: a function of seed and round, not of history."""
    count = max(1, round(participation * clients))
    if count == clients:
        return list(range(clients))
    chosen = seeds.rng(seed, "participation", server_round).choice(clients, size=count, replace=False)
    return sorted(int(client) for client in chosen)


class Strategy(FlowerStrategy):
    """Federated averaging of the layers that `shared` names; clients keep all others.

    A client takes the layers that the server has averaged since that client last took part, and sends the
    layers that are shared in the round. By default all layers are shared, which is FedAvg.

    Parameters
    ----------
    model
        A model of the architecture that is trained; only its layers are read.
    participation
        Share of the clients that train in a round, in (0, 1].
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

    Raises
    ------
    ValueError
        If ``participation`` or ``min_available_nodes`` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        participation: float = 1.0,
        seed: int = 0,
        buffers: Buffers = "shared",
        min_available_nodes: int = 1,
        send_initial: bool = True,
    ) -> None:
        if not 0 < participation <= 1:
            raise ValueError(f"participation = {participation} must be greater than 0 and at most 1")
        if min_available_nodes < 1:
            raise ValueError(f"min_available_nodes = {min_available_nodes} must be at least 1")
        self.layers = Layers.of(model)
        self.participation = participation
        self.seed = seed
        self.buffers = buffers
        self.min_available_nodes = min_available_nodes
        self.send_initial = send_initial
        self.global_model: Params = {}
        self._averaged_in: dict[str, int] = {}
        self._last_round: dict[int, int] = {}
        self._clients: dict[int, int] = {}
        self._participants: list[int] = []
        self._upload: tuple[str, ...] = ()
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
        return params.weighted_mean([update.shared for update in updates], [update.num_examples for update in updates])

    def local_plan(self, server_round: int) -> LocalPlan:
        """Return what clients do in this round; by default they train all layers."""
        return LocalPlan()

    def for_client(self, server_round: int, client: int) -> Params:
        """Return what a client takes from the server when it next takes part, at the earliest in ``server_round``.

        By default the layers that were averaged since it last took part, or ever if it never has.
        """
        last = self._last_round.get(client, 0)
        fresh = [name for name in self.layers.names if self._averaged_in.get(name, -1) >= last]
        keys = self._keys(fresh)
        return {key: self.global_model[key] for key in keys}

    def state(self) -> Params:
        """Return what the strategy itself remembers between rounds, as named tensors for a checkpoint."""
        return {}

    def load_state(self, state: Params) -> None:
        """Take the memory that `state` returned."""

    # One round, in the terms of fedsim.

    def receive(self, server_round: int, replies: Iterable[Message]) -> tuple[list[ClientUpdate], dict[int, str]]:
        """Check the replies of a round.

        Returns
        -------
        updates
            The valid ones, sorted by client: a float sum depends on its order, and replies come in any.
        left_out
            Why each other participant is left out of the average.
        """
        left_out = dict.fromkeys(self._participants, "it did not reply")
        expected = {key: self.global_model[key] for key in self._upload}
        updates = []
        for reply in replies:
            client = self._clients[reply.metadata.src_node_id]
            try:
                updates.append(read_update(client, reply, expected))
                left_out.pop(client, None)
            except ValueError as error:
                left_out[client] = str(error)
        for client, reason in left_out.items():
            logger.warning("round %d: client %d is left out of the average: %s", server_round, client, reason)
        return sorted(updates, key=lambda update: update.client), left_out

    def step(self, server_round: int, updates: Sequence[ClientUpdate]) -> None:
        """Average valid updates into the global model, and remember who took part and what was averaged.

        Raises
        ------
        RunError
            If `aggregate` returns something that is not a part of the model.
        """
        if not updates:
            return
        averaged = self.aggregate(server_round, updates)
        averaged = check_average(averaged, self.global_model, f"{type(self).__name__}.aggregate")
        self.set_global_model(params.combine(self.global_model, averaged))
        self._averaged_in |= {self.layers.of_key(key): server_round for key in averaged}
        self._last_round |= {update.client: server_round for update in updates}

    def progress(self) -> Params:
        """Return who took part when and what was averaged when, as named tensors for a checkpoint."""
        return {
            "averaged_in": torch.tensor([self._averaged_in.get(name, -1) for name in self.layers.names]),
            "last_round": torch.tensor(sorted(self._last_round.items()), dtype=torch.int64).reshape(-1, 2),
        }

    def load_progress(self, progress: Params) -> None:
        """Take what `progress` returned."""
        rounds = zip(self.layers.names, progress["averaged_in"].tolist(), strict=True)
        self._averaged_in = {name: server_round for name, server_round in rounds if server_round >= 0}
        self._last_round = dict(progress["last_round"].tolist())

    def set_global_model(self, model: Params) -> None:
        """Make ``model``, with all entries of the state dict, the global model; a tied tensor under its first name."""
        # A second name would keep its old value when the first is averaged, and a client would load the old one.
        model = {key: value for key, value in model.items() if key not in self.layers.aliases}
        # Entries that did not change keep their encoded form.
        encoded = {
            key: self._arrays[key] if key in self._arrays and self.global_model[key] is value else Array(value)
            for key, value in model.items()
        }
        self.global_model, self._arrays = model, ArrayRecord(encoded)

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
        self._participants = draw_participants(self.seed, server_round, len(nodes), self.participation)
        self._upload = self._keys(self.shared(server_round))
        probe = bool(config.get(messages.PROBE, False))
        instructions = Instructions(server_round, self._upload, self.local_plan(server_round), probe).write()
        return [
            _message(
                nodes[client],
                MessageType.TRAIN,
                {messages.ARRAYS: self._record(self._down(server_round, client))},
                {**config, **instructions},
            )
            for client in self._participants
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the valid replies; clients that failed are left out with a warning."""
        updates, _ = self.receive(server_round, replies)
        if not updates:
            return None, None
        self.step(server_round, updates)
        metrics = weighted_metrics([(update.num_examples, update.metrics) for update in updates])
        return self.arrays, messages.measurements(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write a message to every client: what it would take next, and the rest of the global model."""
        self._take(arrays)
        evaluations = []
        for client, node in enumerate(self._nodes(grid)):
            taken = self._down(server_round + 1, client)
            rest = {key: value for key, value in self.global_model.items() if taken.get(key) is not value}
            records = {messages.ARRAYS: self._record(taken), messages.GLOBAL: self._record(rest)}
            settings = {**config, messages.SERVER_ROUND: server_round}
            evaluations.append(_message(node, MessageType.EVALUATE, records, settings))
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

    def _nodes(self, grid: Grid) -> list[int]:
        """Return the node of each client; a node stays the same client even if others appear later."""
        while len(nodes := sorted(grid.get_node_ids())) < self.min_available_nodes:
            logger.info("waiting for nodes: %d of %d are there", len(nodes), self.min_available_nodes)
            time.sleep(NODE_POLL_SECONDS)
        for node in nodes:
            self._clients.setdefault(node, len(self._clients))
        return list(self._clients)

    def _down(self, server_round: int, client: int) -> Params:
        first = self.send_initial and client not in self._last_round
        return self.global_model if first else self.for_client(server_round, client)

    def _keys(self, group: Iterable[str]) -> tuple[str, ...]:
        return self.layers.keys(group, buffers=self.buffers == "shared")

    def _record(self, part: Params) -> ArrayRecord:
        """Encode a part of the global model without encoding anything twice."""
        return ArrayRecord(
            {
                key: self._arrays[key] if value is self.global_model.get(key) else Array(value)
                for key, value in part.items()
            }
        )


def _message(
    node: int, kind: str, records: Mapping[str, ArrayRecord], settings: Mapping[str, ConfigRecordValues]
) -> Message:
    content = RecordDict({**records, messages.CONFIG: ConfigRecord(dict(settings))})
    return Message(content=content, dst_node_id=node, message_type=kind, group_id=str(settings[messages.SERVER_ROUND]))
