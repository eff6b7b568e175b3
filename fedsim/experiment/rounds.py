"""One round: training, barriers, averaging, evaluation, and what is written about each."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ConfigRecord, Message

from fedsim.analysis.data import Data
from fedsim.analysis.models import Models
from fedsim.analysis.perturbations import perturbations
from fedsim.errors import RunError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.measuring.barrier_cost import rounds_between
from fedsim.experiment.measuring.evaluation_cost import is_evaluated, is_fine_tuned
from fedsim.experiment.measuring.gate import gate_barriers, gate_traffic, mean_barriers
from fedsim.experiment.measuring.uploads import measure_updates
from fedsim.federation.client.evaluation import load_for_evaluation
from fedsim.federation.client.fine_tuning import fine_tuned_layers
from fedsim.federation.client.state import FINE_TUNED, GLOBAL, PERSONALISED, TRAINED, UPLOADED, metric_name
from fedsim.federation.engines.grid import Engine, processors
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, state_of
from fedsim.results.best_round import reason_to_stop, validation_means
from fedsim.results.folder import RunFolder, append_rows, metric_row, read_rows, write_parquet
from fedsim.strategy import ClientUpdate, Measurable, Received, Strategy, messages
from fedsim.strategy.participants import draw_unseen
from fedsim.strategy.traffic import Traffic
from fedsim.training.evaluation import EVALUATION_BATCH, Evaluation, evaluate

AVERAGE = "average"  # of all layers of the uploaded models, whatever the strategy shares
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundSummary:
    """What a progress display shows after a round; accuracies are None where the round has no evaluation.

    ``stopped`` says why the run ends here, if that is before its last round.
    """

    server_round: int
    personalised_accuracy: float | None = None
    global_accuracy: float | None = None
    left_out: int = 0
    stopped: str | None = None


class Rounds:
    """Plays the rounds of one run."""

    def __init__(self, federation: Federation, strategy: Strategy, engine: Engine, folder: RunFolder) -> None:
        self.config = federation.config
        self.federation = federation
        self.strategy = strategy
        self.engine = engine
        self.folder = folder
        self.checkpoints = Checkpoints(folder.checkpoints)
        # Analysis runs in this process, which is idle while the clients' actors are.
        self._threads = engine.workers if self.config.engine.name == "local" else processors()
        self._test = federation.data.test()
        self._measured_every = rounds_between(federation)
        self._changed: set[int] = set()
        self._seconds: dict[str, float] = {}
        # Read again from the records, so that a run that goes on stops where it would have stopped.
        rows = read_rows(folder.metrics).to_dict("records") if self.config.stop.patience else []
        self._validation_means = validation_means(rows, self.config.stop.metric)

    @property
    def stopped(self) -> str | None:
        """Why no further round is to be played, as ``[stop]`` says; None if one is."""
        return reason_to_stop(self._validation_means, self.config.stop)

    def play(self, server_round: int) -> RoundSummary:
        """Play a round and write everything about it; its checkpoint comes last.

        Raises
        ------
        RunError
            If no client gave a valid update.
        """
        self._seconds = {}
        measured = self._is_due(self._measured_every, server_round)
        gate = self.strategy.measurable(server_round)
        rows: list[dict[str, Any]] = []
        with self._timed("train"):
            received = self._train(server_round, probe=measured or gate is not None)
        if gate:
            with self._timed("gate"):
                received.updates = self._gate(server_round, gate, received.updates)
        for update in received.updates:
            rows += _client_rows(server_round, update.client, update.metrics)
        for client in sorted(received.left_out):
            rows.append(metric_row(server_round, client, "train", UPLOADED, "left_out", 1.0, 0))
        if measured and (finite := [update for update in received.updates if update.is_finite()]):
            with self._timed("barriers"):
                rows += self._measure(server_round, finite)
        with self._timed("aggregate"):
            self.strategy.step(server_round, received)
        rows += self._evaluate(server_round)
        rows += self._restored(server_round)
        append_rows(self.folder.metrics, rows)
        if self._is_last(server_round) or self._is_due(self.config.checkpoint_every, server_round):
            with self._timed("checkpoint"):
                self.checkpoints.save(server_round, self.strategy, self.engine, self._changed)
            self._changed = set()
        append_rows(self.folder.timing, [{"round": server_round, **self._seconds}])
        stopped = self.stopped if server_round < self.config.rounds else None
        return replace(_summary(server_round, rows), left_out=len(received.left_out), stopped=stopped)

    def _train(self, server_round: int, probe: bool) -> Received:
        measure = TRAINED in self.config.evaluation.models and is_evaluated(self.config, server_round)
        config = ConfigRecord({messages.PROBE: probe, messages.MEASURE: measure})
        sent = list(self.strategy.configure_train(server_round, self.strategy.arrays, config, self.engine))
        self._changed |= {message.metadata.dst_node_id for message in sent}
        traffic = Traffic(self.federation.layers)
        for message in sent:
            traffic.count(message.metadata.dst_node_id, "down", message)

        def counted() -> Iterator[Message]:
            for reply in self.engine.send_and_receive(sent):
                if reply.has_content():
                    traffic.count(reply.metadata.src_node_id, "up", reply)
                yield reply

        received = self.strategy.receive(server_round, counted(), in_order=not probe)
        append_rows(self.folder.communication, traffic.rows(server_round))
        if not received.updates:
            reason = next(iter(received.left_out.values()))
            raise RunError(f"round {server_round}: no client gave a valid update; the first was left out as {reason}")
        return received

    def _gate(self, server_round: int, gate: Measurable, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Give the strategy the barriers that it asks for; return the updates with what that costs their clients."""
        finite = [update for update in updates if update.is_finite()]
        table = gate_barriers(self.federation, finite, gate, self._threads)
        if len(table):
            write_parquet(self.folder.measured("gate", server_round), table)
        self.strategy.take_barriers(server_round, mean_barriers(table, gate))
        if gate.on == "server":
            return list(updates)
        traffic = gate_traffic(self.federation, gate, [update.client for update in finite])
        append_rows(self.folder.communication, [{"round": server_round, **row} for row in traffic])
        passes = table.groupby("client")["n"].agg(lambda n: n.iloc[0] * (1 + len(gate.layers)))
        name = metric_name(UPLOADED, "train", "forward_examples")
        return [
            replace(update, metrics={**update.metrics, name: update.metrics[name] + passes.get(update.client, 0)})
            for update in updates
        ]

    def _restored(self, server_round: int) -> list[dict[str, Any]]:
        """Return a row for each client that lost what it had learned since a checkpoint, with that one's round."""
        lost, self.engine.restored = self.engine.restored, {}
        for client, checkpoint in lost.items():
            logger.warning(
                "round %d: the worker of client %d died; the client went on from its state after round %d",
                server_round,
                client,
                checkpoint,
            )
        return [metric_row(server_round, k, "train", UPLOADED, "restored_from", lost[k], 0) for k in sorted(lost)]

    def _measure(self, server_round: int, updates: Sequence[ClientUpdate]) -> list[dict[str, Any]]:
        """Write what is measured of the models as uploaded; return the metrics of their average."""
        measured = measure_updates(self.federation, updates, self.strategy.global_model, self._threads)
        for name, table in measured.tables.items():
            write_parquet(self.folder.measured(name, server_round), table)
        return self._server_rows(server_round, AVERAGE, measured.average)

    def _evaluate(self, server_round: int) -> list[dict[str, Any]]:
        """Evaluate all that is due in a round; by the validation data, this may turn out to be the last one."""
        rows: list[dict[str, Any]] = []
        if is_evaluated(self.config, server_round):
            with self._timed("evaluate"):
                wanted = ConfigRecord({messages.MODELS: [PERSONALISED, GLOBAL]})
                rows += self._evaluate_on_clients(server_round, wanted, PERSONALISED)
                rows += self._server_rows(server_round, GLOBAL, self.strategy.global_model)
            if self.config.stop.patience:
                self._validation_means |= validation_means(rows, self.config.stop.metric)
        tunes = FINE_TUNED in self.config.evaluation.models
        if is_fine_tuned(self.config, server_round) or (tunes and self._is_last(server_round)):
            with self._timed("fine-tune"):
                layers = fine_tuned_layers(self.federation, self.strategy)
                wanted = ConfigRecord({messages.MODELS: [FINE_TUNED], messages.FINE_TUNE: layers})
                rows += self._evaluate_on_clients(server_round, wanted, FINE_TUNED)
        return rows

    def _evaluate_on_clients(self, server_round: int, wanted: ConfigRecord, model: str) -> list[dict[str, Any]]:
        """Let the clients evaluate models on their data; ``model`` names the rows of those that cannot."""
        sent = self.strategy.configure_evaluate(server_round, self.strategy.arrays, wanted, self.engine)
        unseen = draw_unseen(self.config.seed, self.config.clients, self.config.unseen)
        replies = sorted(self.engine.send_and_receive(sent), key=lambda reply: reply.metadata.src_node_id)
        rows = []
        for reply in replies:
            client = reply.metadata.src_node_id
            if reply.has_error():
                logger.warning("round %d: client %d is not evaluated: %s", server_round, client, reply.error.reason)
                split = "unseen" if client in unseen else "test"
                rows.append(metric_row(server_round, client, split, model, "left_out", 1.0, 0))
            else:
                rows += _client_rows(server_round, client, dict(reply.content[messages.METRICS]))
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed and len(failed) == len(replies):
            raise RunError(f"round {server_round}: no client could be evaluated; the first was left out as {failed[0]}")
        return rows

    def _server_rows(self, server_round: int, name: str, params: Params) -> list[dict[str, Any]]:
        """Evaluate a model on the server's test data, which threads share."""
        inputs, targets = self._test

        # Cut where evaluation would cut, so that the number of threads changes no batch.
        size = math.ceil(len(targets) / EVALUATION_BATCH / self._threads) * EVALUATION_BATCH

        def evaluate_part(start: int) -> Evaluation:
            model = load_for_evaluation(self.federation, params, self.federation.calibration)
            part = slice(start, start + size)
            return evaluate(model, inputs[part], targets[part])

        with ThreadPoolExecutor(self._threads) as pool:
            parts = list(pool.map(evaluate_part, range(0, len(targets), size)))
        whole = Evaluation(torch.cat([part.losses for part in parts]), torch.cat([part.errors for part in parts]))
        measured = {"loss": whole.loss, "accuracy": whole.accuracy}
        rows = [
            metric_row(server_round, None, "test", name, metric, value, whole.n) for metric, value in measured.items()
        ]
        return rows + self._perturbed_rows(server_round, name, params)

    def _perturbed_rows(self, server_round: int, name: str, params: Params) -> list[dict[str, Any]]:
        """Evaluate a model on the server's test data after each perturbation, whose name takes the place of a split."""
        config = self.config
        if not config.evaluation.perturbed:
            return []
        fgsm, noise = config.evaluation.sizes("fgsm"), config.evaluation.sizes("noise")
        names = {"fgsm": fgsm, "noise": noise}
        model = load_for_evaluation(self.federation, params, self.federation.calibration)
        models = Models(model, [state_of(model)], threads=self._threads, seed=config.seed)
        table = perturbations(models, Data(*self._test), fgsm=list(fgsm), noise=list(noise))
        return [
            metric_row(server_round, None, names[row["perturbation"]][row["size"]], name, metric, value, row["n"])
            for row in table.to_dict("records")
            for metric, value in (("loss", row["loss"]), ("accuracy", 1.0 - row["error"]))
        ]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[part] = round(time.perf_counter() - start, 6)

    def _is_last(self, server_round: int) -> bool:
        return server_round == self.config.rounds or self.stopped is not None

    @staticmethod
    def _is_due(every: int, server_round: int) -> bool:
        return every > 0 and server_round % every == 0


def _client_rows(server_round: int, client: int, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of what a client measured under the names ``model/split/metric``."""
    rows = []
    for name, value in metrics.items():
        model, split, metric = name.split("/") if "/" in name else ("", "", "")
        if metric and metric != "n":
            rows.append(metric_row(server_round, client, split, model, metric, value, metrics[f"{model}/{split}/n"]))
    return rows


def _summary(server_round: int, rows: Sequence[Mapping[str, Any]]) -> RoundSummary:
    def mean_accuracy(model: str, of_server: bool) -> float | None:
        values = [
            row["value"]
            for row in rows
            if (row["model"], row["split"], row["metric"]) == (model, "test", "accuracy")
            and (row["client"] is None) == of_server
        ]
        return sum(values) / len(values) if values else None

    return RoundSummary(server_round, mean_accuracy(PERSONALISED, False), mean_accuracy(GLOBAL, True))
