"""Flower's side of every method: messages out, replies in."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor, nn

from fedsim.models.adapters import factors_of
from fedsim.models.averaging import WeightedMean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.models.tensors import is_same
from fedsim.strategy import messages
from fedsim.strategy.faults import warn_of, warn_of_size
from fedsim.strategy.hooks import Hooks
from fedsim.strategy.messages import Instructions, TensorArray
from fedsim.strategy.participants import draw_evaluated, draw_unseen
from fedsim.strategy.probes import without_probe
from fedsim.strategy.replies import read_update, weighted_metrics
from fedsim.strategy.updates import Received, check_part, check_sets, unlike_others
from fedsim.training import Sets

NODE_POLL_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Strategy(Hooks, FlowerStrategy):
    """Federated averaging of the layers that `shared` names; clients keep all others.

    A client takes the layers that the server has averaged since that client last took part, and sends the layers that
    are shared in the round. By default all layers are shared, which is FedAvg. A method overrides a few of the hooks of
    `fedsim.strategy.hooks.Hooks`.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self._seen: Sequence[int] = ()
        self._node_of: list[int] = []
        self._clients: dict[int, int] = {}
        self._participants: list[int] = []
        self._own: dict[int, Params] = {}  # what each participant received that is not the global model's
        self._arrays = ArrayRecord()

    # A round.

    def receive(self, server_round: int, replies: Iterable[Message], *, in_order: bool = False) -> Received:
        """Check the replies of a round.

        Parameters
        ----------
        in_order
            Whether the replies come in the order of the clients and the layers of updates are not needed. If
            `aggregate` is the default, they are averaged as they come, so that memory does not grow with their number,
            except for the factors of adapters.
        """
        received = Received(left_out=dict.fromkeys(self._participants, "it did not reply"))
        every: dict[LayerGroup, Params] = {}
        mean = WeightedMean(self.dtype) if in_order and type(self).aggregate is Hooks.aggregate else None
        small = {key for each in factors_of(self.model) for key in (each.first, each.second)}
        for reply in replies:
            client = self._clients.get(reply.metadata.src_node_id)
            if client not in received.left_out:  # it was not asked, or its update is there already
                continue
            group = self.shared_by(server_round, client)
            if group not in every:
                every[group] = {key: self.global_model[key] for key in self.keys(group)}
            own = self._own.get(client, {})
            expected = {key: own.get(key, value) for key, value in every[group].items()} if own else every[group]
            try:
                update = read_update(
                    client,
                    reply,
                    expected,
                    self.global_model,
                    partial=self.partial,
                    max_norm=self.max_update_norm,
                    in_bfloat16=self.upload_precision == "bfloat16",
                )
            except ValueError as error:
                received.left_out[client] = str(error)
                continue
            del received.left_out[client]
            if mean is not None:
                mean.add(update.shared, update.num_examples)
                factors = {key: value for key, value in update.shared.items() if key in small}
                update = replace(update, shared=factors, probe={}, sets={})
            received.updates.append(update)
        # A float sum depends on its order, and replies come in any.
        received.updates.sort(key=lambda update: update.client)
        if mean is not None and received.updates:
            received.average = mean.result()
        received.leave_out(unlike_others(received.updates, self.global_model))
        received.leave_out(without_probe(received.updates))
        warn_of_size(server_round, {update.client: update.norm for update in received.updates})
        return received

    def set_global_model(self, model: Params) -> None:
        """Make ``model``, with all entries of the state dict, the global model; a tied tensor under its first name."""
        before = self.global_model
        super().set_global_model(model)
        # Entries that did not change keep their encoded form.
        encoded = {
            key: self._arrays[key] if key in self._arrays and before[key] is value else TensorArray(value)
            for key, value in self.global_model.items()
        }
        self._arrays = messages.record_of(encoded)

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
        self.clients = len(nodes)
        self._participants = list(self.drawn(server_round))
        self._upload = self.keys(self.shared(server_round))
        kept = self.layers.keys(self.kept(server_round))
        server = {*self._upload, *self.layers.keys(self.moved(server_round))}
        self._keep = (*kept, *(key for key in self.global_model if key not in kept and key not in server))
        plan = self.local_plan(server_round)
        probe, measure = (bool(config.get(name, False)) for name in (messages.PROBE, messages.MEASURE))
        settings: dict[LayerGroup, ConfigRecord] = {}
        records, sent = _Records(self), []
        self._own = {}
        for client in self._participants:
            group = self.shared_by(server_round, client)
            if group not in settings:  # one record for all: a message costs little compared with what it carries
                instructions = Instructions(
                    server_round,
                    self.keys(group),
                    self._keep,
                    plan,
                    probe=probe,
                    measure=measure,
                    in_bfloat16=self.upload_precision == "bfloat16",
                    max_norm=self.max_update_norm,
                )
                settings[group] = ConfigRecord({**config, **instructions.write()})
            down = records.as_global(self._down(server_round, client))
            if own := {key: value for key, value in down.items() if value is not self.global_model.get(key)}:
                self._own[client] = own
            content = {messages.ARRAYS: records.of(down)} | records.sets(self._sets(server_round, client))
            sent.append(_message(nodes[client], MessageType.TRAIN, content, settings[group]))
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the valid replies; clients that failed are left out with a warning."""
        received = self.receive(server_round, replies)
        warn_of(server_round, received.left_out)
        warn_of(server_round, received.missing, "diverged", ("has", "have"))
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
        # What clients will share next, as their rules begin the next round to be evaluated.
        upload = list(self.keys(self.shared(server_round + 1)))
        settings = ConfigRecord({**config, messages.SERVER_ROUND: server_round, messages.UPLOAD: upload})
        settings_unseen = ConfigRecord({**settings, messages.UNSEEN: True})
        unseen = set(draw_unseen(self.seed, len(nodes), self.unseen))
        records, evaluations = _Records(self), []
        for client in draw_evaluated(self.seed, len(nodes), self.evaluate_clients, self.unseen):
            taken = records.as_global(self._down(server_round + 1, client))
            rest = {key: value for key, value in self.global_model.items() if taken.get(key) is not value}
            content = {messages.ARRAYS: records.of(taken), messages.GLOBAL: records.of(rest)}
            content |= records.sets(self._sets(server_round + 1, client))
            chosen = settings_unseen if client in unseen else settings
            evaluations.append(_message(nodes[client], MessageType.EVALUATE, content, chosen))
        return evaluations

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return each metric's mean over clients, weighted by examples."""
        metrics = [messages.numbers_of(reply.content) for reply in replies if reply.has_content()]
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

    def _down(self, server_round: int, client: int) -> Params:
        own = self.for_client(server_round, client)
        if type(self).for_client is not Hooks.for_client:
            own = check_part(own, self.global_model, f"{type(self).__name__}.for_client")
        first = self.send_initial and self.exchange.last_round_of(client) == 0
        return self.global_model | own if first else own

    def _sets(self, server_round: int, client: int) -> Sets:
        return check_sets(self.sets_for(server_round, client), messages.RESERVED, f"{type(self).__name__}.sets_for")


class _Records:
    """The parts of a global model that travel in a round as Flower records: clients that take the same share one."""

    def __init__(self, strategy: Strategy) -> None:
        self._model, self._arrays = strategy.global_model, strategy.arrays
        self._known: dict[tuple[str, ...], ArrayRecord] = {}
        self._known_sets: dict[tuple[object, ...], tuple[Sets, ArrayRecord]] = {}
        self._gives_own = type(strategy).for_client is not Hooks.for_client
        self._compared: dict[tuple[str, int], tuple[Tensor, bool]] = {}

    def as_global(self, part: Params) -> Params:
        """Return a part with the global model's tensors in place of equal ones.

        Equal values, not the same tensors, decide who has the global model: a restart makes two tensors of one.
        """
        if not self._gives_own:
            return part
        return {key: self._model[key] if self._is_global(key, value) else value for key, value in part.items()}

    def _is_global(self, key: str, value: Tensor) -> bool:
        own = self._model.get(key)
        if own is None or value is own:
            return value is own
        if (key, id(value)) not in self._compared:  # it holds the tensor, so that no other has its identity
            self._compared[key, id(value)] = value, is_same(value.to(own.device), own)
        return self._compared[key, id(value)][1]

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
            if same not in self._known_sets:  # it holds the tensors, so that no others have their identities
                self._known_sets[same] = {name: dict(entries)}, messages.encode(dict(entries))
            found[name] = self._known_sets[same][1]
        return found


def _sequence(nodes: Iterable[int]) -> Sequence[int]:
    return nodes if isinstance(nodes, range) else list(nodes)


def _message(node: int, kind: str, records: Mapping[str, ArrayRecord], settings: ConfigRecord) -> Message:
    content = RecordDict({**records, messages.CONFIG: settings})
    return Message(content=content, dst_node_id=node, message_type=kind, group_id=str(settings[messages.SERVER_ROUND]))
