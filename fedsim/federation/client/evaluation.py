"""How clients evaluate models on their own data."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn

from fedsim.federation.client.fine_tuning import fine_tune
from fedsim.federation.client.neighbours import neighbour_metrics
from fedsim.federation.client.state import (
    FINE_TUNED,
    GLOBAL,
    NEIGHBOURS,
    PERSONALISED,
    TRAINED,
    client_of,
    metric_name,
    not_finite,
    personalised_model,
    taken_from,
)
from fedsim.federation.data import ClientData, InputsAndTargets
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, load_state_
from fedsim.strategy import messages
from fedsim.training import recompute_buffers_
from fedsim.training.evaluation import Evaluation, evaluate, evaluate_cohort, is_of_batch
from fedsim.training.targets import number_of_targets

# Models that are also measured on validation data and on the server's test data. They are those of clients that train;
# a client that never trains has the split ``unseen`` instead.
SELECTED = (PERSONALISED, TRAINED, FINE_TUNED)


@dataclass(frozen=True)
class _Measurement:
    """A model on one part of a client's data, or on the server's."""

    model: str
    split: str
    params: Params
    examples: InputsAndTargets
    calibration: Callable[[], Tensor]

    def is_own(self, federation: Federation) -> bool:
        """Return whether the model has more than the run's."""
        return federation.client_rule.has_network and self.model in SELECTED

    def metrics(self, federation: Federation, result: Evaluation) -> dict[str, float]:
        measured = federation.measured(result, self.examples[1]) | {"n": number_of_targets(self.examples[1])}
        return {metric_name(self.model, self.split, metric): value for metric, value in measured.items()}


def evaluate_clients(federation: Federation, requests: Sequence[tuple[Message, Context]]) -> list[RecordDict]:
    """Measure the models of each client that its message names, on its own held-out examples and the server's.

    A message that names none asks for the personalised and the global model.
    """
    server = _server_test(federation)
    models = [personalised_model(federation, *request) for request in requests]
    planned = [
        list(_measurements(federation, server, message, context, model))
        for (message, context), model in zip(requests, models, strict=True)
    ]
    replies = []
    for (message, context), model, own in zip(requests, models, _measured(federation, planned), strict=True):
        split = "unseen" if _is_unseen(message) else "test"
        metrics = dict(own)
        if NEIGHBOURS in _models(message):
            metrics |= _with_neighbours(federation, server, message, context, model)
        if GLOBAL in _models(message) and metric_name(GLOBAL, split, "n") not in metrics:
            # The client takes the whole global model.
            start = metric_name(PERSONALISED, split, "")
            for name in [name for name in own if name.startswith(start)]:
                metrics[metric_name(GLOBAL, split, name.removeprefix(start))] = own[name]
        metrics[messages.NUM_EXAMPLES] = next(value for name, value in own.items() if name.endswith(f"/{split}/n"))
        reply = RecordDict({messages.METRICS: messages.measurements(metrics)})
        messages.say_missing(reply, _why_missing(federation, context, metrics))
        replies.append(reply)
    return replies


def evaluate_trained(
    federation: Federation, clients: Sequence[int], trained: Sequence[Params]
) -> list[dict[str, float]]:
    """Measure models right after local training; return each client's metrics.

    Parameters
    ----------
    trained
        Model of each client, all entries.
    """
    server = _server_test(federation)
    planned = [
        list(_on_each_part(TRAINED, params, federation.data.client(client), server, is_unseen=False))
        for client, params in zip(clients, trained, strict=True)
    ]
    return _measured(federation, planned)


def splits_of(model: str, *, is_unseen: bool, validated: bool, on_server: bool) -> list[str]:
    """Return the names of what a client measures a model on.

    Parameters
    ----------
    is_unseen
        Whether the client never trains.
    validated
        Whether it has validation data.
    on_server
        Whether it measures its models on the server's test data too.
    """
    if is_unseen:
        return ["unseen"]
    selected = model in SELECTED
    # Validation data decide how much the neighbours count.
    everywhere = selected or model == NEIGHBOURS
    return ["validation"] * (selected and validated) + ["test"] + ["server"] * (everywhere and on_server)


def _why_missing(federation: Federation, context: Context, metrics: Mapping[str, float]) -> str:
    """Return why models of a client have no finite loss; empty if all have one."""
    losses = [name for name, value in metrics.items() if name.endswith("/loss") and not math.isfinite(value)]
    models = list(dict.fromkeys(name.partition("/")[0] for name in losses))
    if not models:
        return ""
    return not_finite(federation, context) or f"the loss of {' and '.join(models)} is not finite"


def _server_test(federation: Federation) -> InputsAndTargets | None:
    return federation.data.test() if "server" in federation.config.evaluation.on else None


def _models(message: Message) -> Sequence[str]:
    return messages.settings_of(message.content).get(messages.MODELS, [PERSONALISED, GLOBAL])


def _is_unseen(message: Message) -> bool:
    return messages.settings_of(message.content).get(messages.UNSEEN, False)


def _measurements(
    federation: Federation, server: InputsAndTargets | None, message: Message, context: Context, personalised: Params
) -> Iterator[_Measurement]:
    client, models, is_unseen = client_of(context), _models(message), _is_unseen(message)
    data = federation.data.client(client)
    if PERSONALISED in models:
        yield from _on_each_part(PERSONALISED, personalised, data, server, is_unseen=is_unseen)
    rest = messages.decode(messages.arrays_of(message.content, messages.GLOBAL))
    takes_all = not any(value.is_floating_point() for value in rest.values())
    if GLOBAL in models and not (takes_all and PERSONALISED in models and not federation.client_rule.personalises):
        whole = taken_from(message) | rest
        yield from _on_each_part(GLOBAL, whole, data, server, is_unseen=is_unseen)
    if FINE_TUNED in models:
        settings = messages.settings_of(message.content)
        server_round, layers = settings[messages.SERVER_ROUND], settings[messages.FINE_TUNE]
        tuned = fine_tune(federation, personalised, data.train, server_round, client, layers)
        yield from _on_each_part(FINE_TUNED, tuned, data, server, is_unseen=is_unseen)


def _with_neighbours(
    federation: Federation, server: InputsAndTargets | None, message: Message, context: Context, personalised: Params
) -> dict[str, float]:
    """Return the metrics of a client's personalised model and its training examples' neighbours together."""
    data = federation.data.client(client_of(context))
    model = load_for_evaluation(federation, personalised, lambda: data.train[0])
    parts = {"unseen": data.test, "test": data.test} | ({"server": server} if server is not None else {})
    splits = splits_of(NEIGHBOURS, is_unseen=_is_unseen(message), validated=False, on_server=server is not None)
    return neighbour_metrics(federation, model, data, {split: parts[split] for split in splits})


def _on_each_part(
    model: str, params: Params, data: ClientData, server: InputsAndTargets | None, *, is_unseen: bool
) -> Iterator[_Measurement]:
    """Yield the measurements of one model of a client."""
    examples = {"unseen": data.test, "validation": data.validation, "test": data.test, "server": server}
    validated = len(data.validation[1]) > 0
    for split in splits_of(model, is_unseen=is_unseen, validated=validated, on_server=server is not None):
        own = examples[split]
        assert own is not None
        yield _Measurement(model, split, params, own, lambda: data.train[0])


def _measured(federation: Federation, planned: Sequence[Sequence[_Measurement]]) -> list[dict[str, float]]:
    """Return the metrics of each client's measurements."""
    every = [measurement for own in planned for measurement in own]
    results = iter(_evaluated(federation, every, together=len(planned) > 1))
    replies = []
    for own in planned:
        metrics: dict[str, float] = {}
        for measurement in own:
            metrics |= measurement.metrics(federation, next(results))
        replies.append(metrics)
    return replies


def _evaluated(federation: Federation, measurements: Sequence[_Measurement], *, together: bool) -> list[Evaluation]:
    keeps = bool(federation.metrics)
    if together and federation.config.strategy.buffers != "recompute" and not is_of_batch(federation.criterion):
        found: dict[int, Evaluation] = {}
        for own in (False, True):
            places = [place for place, each in enumerate(measurements) if each.is_own(federation) == own]
            members = [(measurements[place].params, *measurements[place].examples) for place in places]
            model = federation.own_model() if own else federation.model()
            evaluated = evaluate_cohort(model, members, federation.criterion, keep_outputs=keeps)
            found |= dict(zip(places, evaluated, strict=True))
        return [found[place] for place in range(len(measurements))]
    results, loaded = [], None
    for measurement in measurements:
        if measurement.params is not loaded:
            calibration, own = measurement.calibration, measurement.is_own(federation)
            model = load_for_evaluation(federation, measurement.params, calibration, own=own)
            loaded = measurement.params
        results.append(evaluate(model, *measurement.examples, federation.criterion, keep_outputs=keeps))
    return results


def load_for_evaluation(
    federation: Federation, params: Params, calibration: Callable[[], Tensor], *, own: bool = False
) -> nn.Module:
    """Return this thread's model with ``params``; running statistics are recomputed where the config asks for it.

    Parameters
    ----------
    calibration
        Function that returns normalised training inputs for the running statistics, shape [n, ...].
    own
        Whether it is a client's own model, which may have more than the run's.
    """
    model = federation.own_model() if own else federation.model()
    load_state_(model, params)
    if federation.config.strategy.buffers == "recompute":
        recompute_buffers_(model, calibration(), federation.config.local.batch_size)
    return model
