"""Evaluation of a round's models, on the clients and on the server, as rows of ``metrics.jsonl``."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedsim.analysis.data import Data
from fedsim.analysis.models import Models
from fedsim.analysis.perturbations import perturbations
from fedsim.errors import DivergedError, RunError
from fedsim.experiment.joined_evaluation import can_join, have_global_model, measure_on_clients
from fedsim.federation.client.evaluation import load_for_evaluation, splits_of
from fedsim.federation.client.state import GLOBAL, PERSONALISED, metric_name
from fedsim.federation.data import InputsAndTargets
from fedsim.federation.engines.grid import Engine
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, state_of
from fedsim.results.faults import fault_row
from fedsim.results.folder import metric_row
from fedsim.strategy import Strategy, messages
from fedsim.strategy.faults import all_failed, warn_of
from fedsim.training.evaluation import Evaluation, batch_sizes, counts_of, evaluate, examples_at_a_time, is_of_batch
from fedsim.training.metrics import BY_CLASS, LOSS
from fedsim.training.targets import number_of_targets

Row = dict[str, Any]
Metrics = dict[str, float]
logger = logging.getLogger(__name__)


def client_rows(server_round: int, client: int, metrics: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of what a client measured under the names ``model/split/metric``."""
    for name, value in metrics.items():
        model, split, metric = name.split("/", 2) if "/" in name else ("", "", "")
        if metric and metric != "n":
            yield metric_row(server_round, client, split, model, metric, value, metrics[f"{model}/{split}/n"])


def evaluate_models(
    server_round: int, strategy: Strategy, engine: Engine, wanted: ConfigRecord, on_server: "ServerEvaluation"
) -> tuple[list[Row], list[Row]]:
    """Evaluate models on the clients' data, and the global one on the server's test data, once for all who ask.

    Parameters, results and errors are those of `evaluate_on_clients`.
    """
    model = strategy.global_model
    on_test = cache(partial(on_server.metrics, model))
    rows, faults = evaluate_on_clients(server_round, strategy, engine, wanted, on_server, on_test)
    return rows + on_server.rows(server_round, GLOBAL, model, on_test()), faults


def evaluate_on_clients(
    server_round: int,
    strategy: Strategy,
    engine: Engine,
    wanted: ConfigRecord,
    on_server: "ServerEvaluation",
    on_test: Callable[[], Metrics] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Evaluate models on the clients' data: the global one in one pass, those that only a client has by the client.

    Parameters
    ----------
    wanted
        Settings for the clients: which models to evaluate, and how.
    on_server
        What evaluates the global model on the server's test data, and on how many threads.
    on_test
        Function that returns what comes out (default: the model is evaluated).

    Returns
    -------
    rows, faults
        Metrics of the clients, without values for those that failed, and faults of these and of clients whose models
        have no finite loss.

    Raises
    ------
    RunError
        If no client can be evaluated.
    """
    federation = on_server.federation
    sent = {
        message.metadata.dst_node_id: message
        for message in strategy.configure_evaluate(server_round, strategy.arrays, wanted, engine)
    }
    on_test = on_test or partial(on_server.metrics, strategy.global_model)
    known = _known_metrics(strategy, sent, on_server, on_test) if can_join(federation, wanted) else {}
    replies = {reply.metadata.src_node_id: reply for reply in engine.send_and_receive(_asked(sent, known))}
    rows: list[Row] = []
    failed: dict[int, str] = {}
    missing: dict[int, str] = {}
    for client in sorted(sent):
        metrics: Mapping[str, Any] = known.get(client, {})
        reply = replies.get(client)
        if reply is not None and reply.has_error():
            failed[client] = str(reply.error.reason)
            rows += _rows_without_values(server_round, federation, client, messages.settings_of(sent[client].content))
            continue
        if reply is not None:
            metrics = {**reply.content[messages.METRICS], **metrics}
            if reason := messages.missing_of(reply.content):
                missing[client] = reason
        rows += client_rows(server_round, client, metrics)
    if failed and len(failed) == len(sent):
        raise RunError(f"round {server_round}: no client could be evaluated; {all_failed(failed)}")
    warn_of(server_round, failed, "not evaluated")
    warn_of(server_round, missing, "no finite loss", ("has", "have"))
    faults = sorted((failed | missing).items())
    return rows, [fault_row(server_round, client, "evaluate", reason) for client, reason in faults]


def _known_metrics(
    strategy: Strategy, sent: Mapping[int, Message], on_server: "ServerEvaluation", on_test: Callable[[], Metrics]
) -> dict[int, dict[str, float]]:
    """Return what need not be asked of each client, by the names of its measurements.

    That is what the global model achieves on its data, also as the personalised model of a client that has no other.
    Clients for whose data the model raises, or has a loss that is not finite, are left out: they are asked for the
    reason.
    """
    federation, model, threads = on_server.federation, strategy.global_model, on_server.threads
    have_it = set(have_global_model(federation, strategy, sent))
    kinds = {
        client: _split_settings(federation, client, messages.settings_of(message.content))
        for client, message in sent.items()
    }
    tested = measure_on_clients(federation, model, "test", sorted(sent), threads)
    validating = [client for client in sorted(have_it) if "validation" in splits_of(PERSONALISED, **kinds[client])]
    validated = measure_on_clients(federation, model, "validation", validating, threads)
    is_on_server = any("server" in splits_of(PERSONALISED, **kinds[client]) for client in have_it)
    server = on_test() if is_on_server else {}
    known: dict[int, dict[str, float]] = {}
    raised = (sent.keys() - tested.keys()) | (set(validating) - validated.keys())
    for client in sorted(sent.keys() - raised):
        own = {"test": tested[client], "unseen": tested[client]}
        own |= {"validation": validated.get(client, {}), "server": server}
        found = {
            metric_name(name, split, metric): value
            for name in ([PERSONALISED] * (client in have_it) + [GLOBAL])
            for split in splits_of(name, **kinds[client])
            for metric, value in own[split].items()
        }
        if all(math.isfinite(value) for name, value in found.items() if name.endswith(f"/{LOSS}")):
            known[client] = found
    return known


def _asked(sent: Mapping[int, Message], known: Mapping[int, Mapping[str, float]]) -> Iterator[Message]:
    """Yield the messages to clients of which something is not known yet; they ask for that alone."""
    narrowed: dict[int, ConfigRecord] = {}  # by record, of which many clients have the same
    for client, message in sent.items():
        if client not in known:
            yield message
        elif not any(name.startswith(f"{PERSONALISED}/") for name in known[client]):
            settings, metadata = messages.settings_of(message.content), message.metadata
            if id(settings) not in narrowed:
                narrowed[id(settings)] = ConfigRecord({**settings, messages.MODELS: [PERSONALISED]})
            rest = {name: each for name, each in message.content.items() if name != messages.GLOBAL}
            content = RecordDict({**rest, messages.CONFIG: narrowed[id(settings)]})
            yield Message(content, client, metadata.message_type, group_id=metadata.group_id)


def check_any_finite(server_round: int, rows: Iterable[Row]) -> None:
    """Check that some client's own model has a finite loss.

    Raises
    ------
    DivergedError
        If none has one.
    """
    losses = [row["value"] for row in rows if (row["model"], row["metric"]) == (PERSONALISED, "loss")]
    if losses and all(value is None for value in losses):
        raise DivergedError(f"round {server_round}: no client's own model has a finite loss; a lower local.lr may help")


def _rows_without_values(
    server_round: int, federation: Federation, client: int, settings: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield the rows of a client that could not be evaluated: it is missing from a mean, which must say so."""
    kinds = _split_settings(federation, client, settings)
    for model in settings[messages.MODELS]:
        for split in splits_of(model, **kinds):
            for metric in (LOSS, federation.task.main, *federation.metrics):
                if metric != BY_CLASS:  # which classes the client has, it has not said
                    yield metric_row(server_round, client, split, model, metric, math.nan, 0)


def _split_settings(federation: Federation, client: int, settings: Mapping[str, Any]) -> dict[str, bool]:
    """Return what the splits depend on that a client measures models on."""
    return {
        "is_unseen": bool(settings.get(messages.UNSEEN, False)),
        "validated": len(federation.data.split.validation[client]) > 0,
        "on_server": "server" in federation.config.evaluation.on,
    }


@dataclass(frozen=True)
class ServerEvaluation:
    """Evaluates models on the server's test data.

    Parameters
    ----------
    test
        Normalised test data of the server.
    threads
        Number of threads, which share the data.
    """

    federation: Federation
    test: InputsAndTargets
    threads: int

    def rows(self, server_round: int, name: str, params: Params, known: Metrics | None = None) -> list[Row]:
        """Return the metrics of a model, also on perturbed data where the config asks for that.

        Parameters
        ----------
        name
            Name of the model in the rows.
        known
            Its metrics, if it has been evaluated already.
        """
        measured = dict(known or self.metrics(params))
        if not math.isfinite(measured[LOSS]):
            logger.warning("round %d: the %s model has no finite loss on the server's test data", server_round, name)
        n = int(measured.pop("n"))
        rows = [metric_row(server_round, None, "test", name, key, value, n) for key, value in measured.items()]
        return rows + self._perturbed_rows(server_round, name, params)

    def metrics(self, params: Params) -> dict[str, float]:
        """Return the metrics of a model, with ``n``."""
        measured = self.federation.measured(self._evaluate(params), self.test[1])
        return measured | {"n": number_of_targets(self.test[1])}

    def _evaluate(self, params: Params) -> Evaluation:
        inputs, targets = self.test
        # Each thread has whole batches, so that the number of threads changes none.
        batches = batch_sizes(len(targets), examples_at_a_time(inputs.device))
        threads = 1 if is_of_batch(self.federation.criterion) else self.threads
        each = math.ceil(len(batches) / threads)
        sizes = [sum(batches[first : first + each]) for first in range(0, len(batches), each)]

        def evaluate_part(inputs: Tensor, targets: Tensor) -> Evaluation:
            model = load_for_evaluation(self.federation, params, self.federation.calibration)
            criterion, keeps = self.federation.criterion, bool(self.federation.metrics)
            return evaluate(model, inputs, targets, criterion, keep_outputs=keeps)

        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(evaluate_part, inputs.split(sizes), targets.split(sizes)))
        losses, errors = (torch.cat([getattr(part, name) for part in parts]) for name in ("losses", "errors"))
        outputs = [part.outputs for part in parts if part.outputs is not None]
        counts = counts_of(targets, self.federation.criterion)
        return Evaluation(losses, errors, counts, torch.cat(outputs) if outputs else None)

    def _perturbed_rows(self, server_round: int, name: str, params: Params) -> list[Row]:
        """Return the metrics of a model after each perturbation, whose name takes the place of a split."""
        config = self.federation.config
        if not config.evaluation.perturbed:
            return []
        fgsm, noise = config.evaluation.sizes("fgsm"), config.evaluation.sizes("noise")
        names = {"fgsm": fgsm, "noise": noise}
        model = load_for_evaluation(self.federation, params, self.federation.calibration)
        models = Models(model, [state_of(model)], threads=self.threads, seed=config.seed)
        table = perturbations(
            models, Data(*self.test, criterion=self.federation.criterion), fgsm=list(fgsm), noise=list(noise)
        )
        n, task = number_of_targets(self.test[1]), self.federation.task
        return [
            metric_row(server_round, None, names[row["perturbation"]][row["size"]], name, metric, value, n)
            for row in table.to_dict("records")
            for metric, value in (("loss", row["loss"]), (task.main, task.main_value(row["error"])))
        ]
