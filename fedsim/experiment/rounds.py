"""One round: training, barriers, averaging, evaluation, and the records of each."""

import logging
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, Message

from fedsim.config.choices import method_name
from fedsim.errors import DivergedError, RunError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.evaluation import (
    Row,
    ServerEvaluation,
    check_any_finite,
    client_rows,
    evaluate_models,
    evaluate_on_clients,
)
from fedsim.experiment.injected import InjectedRound
from fedsim.experiment.measuring.barrier_cost import rounds_between
from fedsim.experiment.measuring.evaluation_cost import is_evaluated, is_fine_tuned
from fedsim.experiment.measuring.step import step_and_record
from fedsim.experiment.measuring.uploads import measure_updates
from fedsim.experiment.measuring.wanted import client_barriers, wanted_barriers, wanted_traffic, with_passes
from fedsim.experiment.round_line import describe_round
from fedsim.federation.client.fine_tuning import fine_tuned_layers
from fedsim.federation.client.state import FINE_TUNED, GLOBAL, NEIGHBOURS, PERSONALISED, TRAINED
from fedsim.federation.engines.grid import Engine, processors
from fedsim.federation.federation import Federation
from fedsim.models.draws import same_draws
from fedsim.models.variance import constant_keys
from fedsim.results.best_round import best_rounds, reason_to_stop, selecting, validation_means
from fedsim.results.faults import fault_row, rounds_without_loss
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.records import Records
from fedsim.seeds import derive
from fedsim.strategy import ClientUpdate, Measurable, Received, Strategy, messages
from fedsim.strategy.faults import NOT_FINITE, all_failed, kind_of, warn_of
from fedsim.strategy.traffic import Traffic, layer_bytes
from fedsim.strategy.updates import check_state
from fedsim.training.metrics import MAIN, mean_of_known, meant

AVERAGE = "average"  # of all layers of the uploaded models, whatever the strategy shares
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundSummary:
    """What a progress display shows after a round.

    Parameters
    ----------
    personalised_accuracy, global_accuracy
        None where the round has no evaluation. The first is a mean over the clients whose model has a finite loss; NaN
        stands for no value.
    missing
        Number of the other clients.
    faults
        Number of faults of clients in the round.
    stopped
        Why the run ends here, if that is before its last round.
    metric
        Name of the metric, which is another one where there is no accuracy.
    """

    server_round: int
    personalised_accuracy: float | None = None
    global_accuracy: float | None = None
    missing: int = 0
    faults: int = 0
    stopped: str | None = None
    metric: str = MAIN


class Rounds:
    """The rounds of one run."""

    def __init__(self, federation: Federation, strategy: Strategy, engine: Engine, folder: RunFolder) -> None:
        self.config = federation.config
        self.federation = federation
        self.strategy = strategy
        self.engine = engine
        self.folder = folder
        self.records = Records(folder)
        self.checkpoints = Checkpoints(folder.checkpoints)
        # Analysis runs in this process while the clients' actors are idle.
        self._threads = engine.workers if self.config.engine.name == "local" else processors()
        self._on_server = ServerEvaluation(federation, federation.data.test(), self._threads)
        self._measured_every = rounds_between(federation)
        self._constant = constant_keys(federation.initial)
        self._changed: set[int] = set()
        self._passing: tuple[int, ...] = ()
        self._seconds: dict[str, float] = {}
        self._faults = 0
        # Read again from the records, so that a resumed run stops where it would have stopped.
        rows = read_rows(folder.metrics).to_dict("records") if folder.metrics.exists() else []
        main = federation.task.main
        self._stops_by = meant(self.config.stop.metric, (main,))
        kept = dict.fromkeys((*selecting((main,)), self._stops_by))
        self._validation_means = {metric: validation_means(rows, metric) for metric in kept}
        self._lost_in = rounds_without_loss(folder)

    @property
    def stopped(self) -> str | None:
        """Why ``[stop]`` ends the run here; None if it continues."""
        return reason_to_stop(self._validation_means[self._stops_by], self.config.stop, self._stops_by)

    def restore(self, server_round: int) -> None:
        """Resume after a round, from its checkpoint; the records end with that round already."""
        best = best_rounds(self._validation_means)
        self.checkpoints.load(server_round, self.strategy, self.engine, self._keep(best, server_round))
        if not self._has_checkpoint(server_round, best):  # the last round of a shorter run
            self._passing = (server_round,)
            self._changed.update(self.checkpoints.written_after(server_round))
        if self.config.keeps_best and (lost := best - set(self.checkpoints.rounds())):
            logger.warning(
                "the models of round %d, the best so far, are not kept, as checkpoints.keep was 'last' then", min(lost)
            )

    def run_round(self, server_round: int) -> RoundSummary:
        """Run a round and write its records; the checkpoint comes last.

        Raises
        ------
        RunError
            If no client sent a valid update, or can be evaluated.
        DivergedError
            If that is because none is finite, if no client's own model has a finite loss, or if what the strategy
            remembers is not finite.
        """
        self._seconds, self._faults = {}, 0
        measured = self._is_due(self._measured_every, server_round)
        gate = self.strategy.measurable(server_round)
        with self._timed("train"), self.federation.noticing_draws(self.engine.workers):
            received, injected = self._train(server_round, probe=measured or gate is not None)
        if gate and received.updates:
            with self._timed("gate"):
                received.updates = self._gate(server_round, gate, received.updates)
        rows: list[Row] = list(injected.time_rows(server_round))
        for update in received.updates:
            rows += client_rows(server_round, update.client, update.metrics)
        if measured and (finite := [update for update in received.updates if update.is_finite(self.federation.layers)]):
            with self._timed("barriers"):
                rows += self._measure(server_round, finite)
        with same_draws(self.federation.device, derive(self.config.seed, "strategy", server_round)):
            with self._timed("aggregate"):
                step_and_record(self.strategy, server_round, received, self.records, self._constant)
                where = f"round {server_round}: {method_name(self.config)}"
                check_state(self.strategy.state, self.strategy.global_model, received.updates, where)
            evaluated, failed = self._evaluate(server_round)
        rows += evaluated
        self.records.append("metrics", rows)
        restored = self._restored(server_round)
        # Workers die of injected crashes only where their clients lose nothing, and in one engine only.
        self._note(failed + ([] if injected.has_crashes else restored))
        self.records.seal_round(server_round)
        try:
            check_any_finite(server_round, evaluated)
            self._check_any_trained(server_round, received.missing)
        except DivergedError:  # the round is on record, and its time says that all of it is
            self._note_time(server_round)
            raise
        self._save_if_due(server_round)
        self._note_time(server_round)
        logger.info(describe_round(server_round, self.config.rounds, rows, self._seconds))
        stopped = self.stopped if server_round < self.config.rounds else None
        return replace(_summary(server_round, rows, self.federation.task.main), faults=self._faults, stopped=stopped)

    def _train(self, server_round: int, probe: bool) -> tuple[Received, InjectedRound]:
        measure = TRAINED in self.config.evaluation.models and is_evaluated(self.config, server_round)
        config = ConfigRecord({messages.PROBE: probe, messages.MEASURE: measure})
        sent = list(self.strategy.configure_train(server_round, self.strategy.arrays, config, self.engine))
        self._changed |= {message.metadata.dst_node_id for message in sent}
        traffic = Traffic(self.federation.layers, self.strategy.model)
        for message in sent:
            traffic.count(message.metadata.dst_node_id, "down", message)

        injected = InjectedRound(self.federation, sent)

        def counted() -> Iterator[Message]:
            for reply in self.engine.send_and_receive(sent):
                if reply.has_content():
                    traffic.count(reply.metadata.src_node_id, "up", reply)
                yield reply

        received = self.strategy.receive(server_round, injected.replies(counted()), in_order=not probe)
        self.records.append("communication", traffic.rows(server_round))
        left_out, missing = injected.mark(received.left_out), received.missing
        faults = [
            fault_row(server_round, client, "train", left_out[client], injected=injected.kinds.get(client))
            for client in sorted(left_out)
        ]
        self._note(faults)
        self._note(injected.fault_rows(server_round, received))
        for client, why in missing.items():
            self._note([fault_row(server_round, client, "loss" if why == messages.NO_LOSS else "personal", why)])
        if not received.updates and not injected.explain(left_out):
            failure = DivergedError if {*map(kind_of, left_out.values())} == {NOT_FINITE} else RunError
            raise failure(f"round {server_round}: no client sent a valid update; {all_failed(left_out)}")
        warn_of(server_round, left_out)
        if not received.updates:
            logger.warning("round %d: no valid update is left; the global model is unchanged", server_round)
        warn_of(server_round, missing, "diverged", ("has", "have"))
        return received, injected

    def _note_time(self, server_round: int) -> None:
        self.records.append("timing", [{"round": server_round, **self._seconds}])

    def _check_any_trained(self, server_round: int, missing: Mapping[int, str]) -> None:
        """Check that some client has a finite loss after the training that it last took part in.

        Raises
        ------
        DivergedError
            If none has, also in rounds without an evaluation.
        """
        self._lost_in |= dict.fromkeys(missing, server_round)
        last_round_of = self.strategy.exchange.last_round_of
        if missing and all(
            0 < last_round_of(client) == self._lost_in.get(client) for client in self.strategy.clients_that_train
        ):
            raise DivergedError(
                f"round {server_round}: no client has a finite loss after training; {all_failed(missing)}; a lower "
                "local.lr may help"
            )

    def _note(self, faults: Sequence[Row]) -> None:
        """Write faults, also those of a round that fails."""
        self._faults += len(faults)
        if faults:
            self.records.append("faults", faults)

    def _gate(self, server_round: int, gate: Measurable, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Give the strategy the barriers that it asks for; return the updates with the cost of measuring them."""
        finite = [update for update in updates if update.is_finite(self.federation.layers)]
        clusters = self.strategy.measured_clusters(server_round, finite)
        table = wanted_barriers(self.federation, finite, gate, self._threads, clusters)
        if len(table):
            self.records.write_table("gate", server_round, table)
        self.strategy.take_barriers(server_round, client_barriers(table, gate))
        if gate.on == "server":
            return list(updates)
        traffic = wanted_traffic(layer_bytes(self.strategy, self.federation.initial), gate, clusters)
        self.records.append("communication", [{"round": server_round, **row} for row in traffic])
        return with_passes(updates, table)

    def _measure(self, server_round: int, updates: Sequence[ClientUpdate]) -> list[Row]:
        """Write what is measured of the models as uploaded; return the metrics of their average."""
        measured = measure_updates(self.federation, updates, self.strategy.global_model, self._threads)
        for name, table in measured.tables.items():
            self.records.write_table(name, server_round, table)
        return self._on_server.rows(server_round, AVERAGE, measured.average)

    def _evaluate(self, server_round: int) -> tuple[list[Row], list[Row]]:
        """Evaluate what is due in a round, which by the validation data may turn out to be the last one.

        Returns
        -------
        rows, faults
            Metrics, and faults of the clients that failed.
        """
        rows: list[Row] = []
        faults: list[Row] = []
        if is_evaluated(self.config, server_round):
            with self._timed("evaluate"):
                with_neighbours = [NEIGHBOURS] * (NEIGHBOURS in self.config.evaluation.models)
                wanted = ConfigRecord({messages.MODELS: [PERSONALISED, GLOBAL, *with_neighbours]})
                rows, faults = evaluate_models(server_round, self.strategy, self.engine, wanted, self._on_server)
            for metric, means in self._validation_means.items():
                means |= validation_means(rows, metric)
        tunes = FINE_TUNED in self.config.evaluation.models
        if is_fine_tuned(self.config, server_round) or (tunes and self._is_last(server_round)):
            with self._timed("fine-tune"):
                layers = fine_tuned_layers(self.federation, self.strategy)
                wanted = ConfigRecord({messages.MODELS: [FINE_TUNED], messages.FINE_TUNE: layers})
                tuned, failed = evaluate_on_clients(server_round, self.strategy, self.engine, wanted, self._on_server)
                rows, faults = rows + tuned, faults + failed
        return rows, faults

    def _save_if_due(self, server_round: int) -> None:
        """Write a checkpoint of a round after which the run could resume, or whose models are to be kept."""
        best = best_rounds(self._validation_means)
        if self._is_last(server_round) or self._has_checkpoint(server_round, best):
            keep = self._keep(best, server_round)
            with self._timed("checkpoint"):
                sealed = self.records.sealed()
                self.checkpoints.save(
                    server_round, self.strategy, self.engine, self._changed, keep, sealed, passing=self._passing
                )
            self._changed = set()

    def _has_checkpoint(self, server_round: int, best: Container[int]) -> bool:
        """Return whether a round has a checkpoint whether or not it is the last."""
        is_kept = self.config.keeps_best and server_round in best
        return is_kept or self._is_due(self.config.checkpoint_every, server_round)

    def _keep(self, best: Container[int], server_round: int) -> Container[int]:
        """Return the rounds before this one whose models are kept."""
        if self.config.checkpoints.keep == "all":
            return range(1, server_round)
        return best if self.config.keeps_best else ()

    def _restored(self, server_round: int) -> list[Row]:
        """Return a fault for each client that lost what it had learned since its last checkpoint."""
        restored = sorted(self.engine.take_restored().items())
        for client, lost in restored:
            logger.warning(
                "round %d: the worker of client %d died; the client resumed from its state after round %d",
                server_round,
                client,
                lost.server_round,
            )
        return [fault_row(server_round, client, "worker", lost.reason, lost.server_round) for client, lost in restored]

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


def _summary(server_round: int, rows: Sequence[Mapping[str, Any]], metric: str) -> RoundSummary:
    def accuracies(model: str, of_server: bool) -> list[float | None]:
        return [
            row["value"]
            for row in rows
            if (row["model"], row["split"], row["metric"]) == (model, "test", metric)
            and (row["client"] is None) == of_server
        ]

    own, of_server = accuracies(PERSONALISED, False), accuracies(GLOBAL, True)
    mean, on_server = (mean_of_known(values)[0] if values else None for values in (own, of_server))
    return RoundSummary(server_round, mean, on_server, missing=own.count(None), metric=metric)
