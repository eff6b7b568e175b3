"""The Flower ClientApp: takes the server's layers, trains by the local plan, sends the shared layers back.

The client keeps its whole model in ``context.state``, so it works in any runtime that keeps that state.
"""

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedsim import messages
from fedsim.evaluation import evaluate
from fedsim.federated_data import ClientData
from fedsim.federation import Federation
from fedsim.messages import Instructions
from fedsim.params import Params, combine, load_state_, state_of
from fedsim.seeds import derive, rng
from fedsim.training import recompute_buffers_, train_

MODEL, MOMENTUM = "model", "momentum"
UPLOADED, PERSONALISED, GLOBAL = "uploaded", "personalised", "global"


def client_app(federation: Federation) -> ClientApp:
    """Return the app of a federation's clients; a node's ``partition-id`` says which client it is."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_train(federation, message.content, context), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(_evaluate(federation, message.content, context), reply_to=message)

    return app


def metric_name(model: str, split: str, metric: str) -> str:
    """Return the key of a client's measurement, e.g. ``personalised/test/loss``."""
    return f"{model}/{split}/{metric}"


def _train(federation: Federation, content: RecordDict, context: Context) -> RecordDict:
    client, instructions = _client(context), Instructions.read(content.config_records[messages.CONFIG])
    settings = federation.config.local.sgd()
    data = federation.data.client(client)
    model = federation.model()
    load_state_(model, combine(_own(federation, context), messages.decode(content.array_records[messages.ARRAYS])))
    # For dropout, the one thing that torch draws from a stream of the whole process.
    torch.manual_seed(derive(federation.config.seed, "dropout", instructions.server_round, client))
    training = train_(
        model,
        *data.train,
        plan=instructions.plan,
        settings=settings,
        rng=rng(federation.config.seed, "train", instructions.server_round, client),
        augmentation=federation.data.augmentation,
        momentum=_stored(context, MOMENTUM),
    )
    # The model itself is used again for the next client, so what stays is encoded, which copies it.
    whole = messages.encode(state_of(model))
    context.state[MODEL] = whole
    if settings.optimizer_state == "keep":
        context.state[MOMENTUM] = messages.encode(training.momentum)
    shared = {key: whole[key] for key in instructions.upload}
    examples = len(data.train[1])
    metrics = {
        messages.NUM_EXAMPLES: examples,
        metric_name(UPLOADED, "train", "loss"): training.loss,
        metric_name(UPLOADED, "train", "n"): examples,
    }
    reply = RecordDict({messages.ARRAYS: ArrayRecord(shared), messages.METRICS: messages.measurements(metrics)})
    if instructions.probe:
        rest = {key: array for key, array in whole.items() if key not in shared}
        reply[messages.PROBE] = ArrayRecord(rest)
    return reply


def _evaluate(federation: Federation, content: RecordDict, context: Context) -> RecordDict:
    """Measure the personalised and the global model on the client's own held-out examples."""
    data = federation.data.client(_client(context))
    taken = messages.decode(content.array_records[messages.ARRAYS])
    rest = messages.decode(content.array_records[messages.GLOBAL])
    personalised = combine(_own(federation, context), taken)
    metrics = _measure(federation, personalised, data, PERSONALISED, {"validation": data.validation, "test": data.test})
    if any(value.is_floating_point() for value in rest.values()):
        metrics |= _measure(federation, taken | rest, data, GLOBAL, {"test": data.test})
    else:  # the client takes the whole global model, so the two are one
        same = {key: value for key, value in metrics.items() if "/test/" in key}
        metrics |= {key.replace(PERSONALISED, GLOBAL): value for key, value in same.items()}
    metrics[messages.NUM_EXAMPLES] = len(data.test[1])
    return RecordDict({messages.METRICS: messages.measurements(metrics)})


def _measure(
    federation: Federation, params: Params, data: ClientData, name: str, splits: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    model = load_for_evaluation(federation, params, data.train[0])
    metrics: dict[str, float] = {}
    for split, (inputs, targets) in splits.items():
        if len(targets):
            result = evaluate(model, inputs, targets)
            measured = {"loss": result.loss, "accuracy": result.accuracy, "n": result.n}
            metrics |= {metric_name(name, split, metric): value for metric, value in measured.items()}
    return metrics


def load_for_evaluation(federation: Federation, params: Params, calibration: Tensor) -> nn.Module:
    """Return this thread's model with ``params``; its running statistics are computed anew where the config says so.

    Parameters
    ----------
    calibration
        Normalised training inputs for the running statistics, shape [n, ...].
    """
    model = federation.model()
    load_state_(model, params)
    if federation.config.strategy.buffers == "recompute":
        recompute_buffers_(model, calibration, federation.config.local.batch_size)
    return model


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _own(federation: Federation, context: Context) -> Params:
    """Return the client's model as it last left it, or the initial model."""
    return _stored(context, MODEL) or federation.initial


def _stored(context: Context, name: str) -> Params:
    return messages.decode(context.state.array_records.get(name, ArrayRecord()))
