"""The Flower ClientApp: takes the server's layers, trains by the local plan, sends the shared layers back.

A client keeps in ``context.state`` what it will not take from the server again, so it works in any runtime that keeps
that state.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial

from flwr.app import Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.config.content import AGAIN, Counted, check_unchanged
from fedsim.errors import ClientError
from fedsim.federation.client.evaluation import evaluate_clients, evaluate_trained
from fedsim.federation.client.faulty import Measurable, Reply, Request, train_with_faults
from fedsim.federation.client.state import (
    UPLOADED,
    is_unknown,
    local_of,
    metric_name,
    not_finite,
    size_of,
    start_of,
    stored,
)
from fedsim.federation.federation import Federation, SharedParts, federation_of
from fedsim.federation.participants import participants
from fedsim.models.params import Params, flat_copy, is_finite, load_state_, state_of
from fedsim.seeds import rng
from fedsim.strategy import messages
from fedsim.strategy.messages import MODEL, OPTIMIZER, Instructions
from fedsim.strategy.updates import misfit
from fedsim.training import (
    Finished,
    Local,
    LocalPlan,
    LocalTask,
    Ruled,
    Sets,
    Training,
    choose_cohort,
    train_,
    train_cohort,
)
from fedsim.training.checked import personalised_of
from fedsim.training.schedule import RoundOf
from fedsim.training.settings import LocalSettings
from fedsim.training.targets import number_of_targets

# Of the tables that name files, all but those of which workers get what was made here.
READ_BY_WORKERS = tuple(each.table for each in CATALOGUES.values() if each.table not in ("data", "partition"))
Together = Callable[[Sequence[Request]], Sequence[Reply]]


class CohortApp(ClientApp):
    """A ClientApp that can also answer for several clients at once.

    Parameters
    ----------
    cohort
        For how many at most.
    together
        Maps messages of one type, each with its client's context, to the contents of the replies, or errors of single
        clients.
    """

    def __init__(self, cohort: int, together: Together) -> None:
        super().__init__()
        self.cohort = cohort
        self._together = together

    def together(self, requests: Sequence[Request]) -> list[Message]:
        """Return the replies to messages of one type, each with its client's context."""
        contents = self._together(requests)
        return [_written(content, request) for content, (request, _) in zip(contents, requests, strict=True)]


def client_app(federation: Federation, cohort: int = 1, *, dies: bool = False) -> CohortApp:
    """Return the app of a federation's clients; a node's ``partition-id`` says which client it is.

    Parameters
    ----------
    cohort
        Clients that train, or are evaluated, as one vectorised computation.
    dies
        Whether a crash of ``[faults]`` ends the process.
    """
    train_all: Together = partial(_replies, federation)
    if federation.config.faults.is_wanted:
        train_all = partial(train_with_faults, federation, train=partial(_train, federation), dies=dies)
    app = CohortApp(cohort, partial(_answers, train_all, partial(evaluate_clients, federation)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        [reply] = train_all([(message, context)])
        if isinstance(reply, ClientError):
            raise reply
        return Message(reply, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(evaluate_clients(federation, [(message, context)])[0], reply_to=message)

    return app


def _written(content: Reply, request: Message) -> Message:
    if isinstance(content, ClientError):
        return Message(Error(messages.CLIENT_RAISED, str(content)), reply_to=request)
    return Message(content, reply_to=request)


def cohort_size(federation: Federation) -> int:
    """Return how many clients train at once: as ``[engine] cohort`` says, or what is faster on this device."""
    config = federation.config
    if config.engine.cohort != "auto":
        return config.engine.cohort
    if federation.device.type == "cpu":
        return 1
    tasks = []
    for client in participants(config, 1):
        train, stream = federation.data.client(client).train, rng(config.seed, "trial", client)
        ruled = Ruled(training_loss=federation.objective_of(train[1]))
        tasks.append(LocalTask(federation.initial, *train, stream, ruled=ruled))
    return choose_cohort(federation.model(), tasks, LocalPlan(), federation.local, federation.data.augmentation)


def app_of(config: Config, cohort: int, files: Sequence[Counted], shared: SharedParts) -> CohortApp:
    """Return the app of the clients of a run, in a process that knows nothing of it yet.

    Parameters
    ----------
    files
        What the run is named by besides its settings and its data; a worker that starts later must have the same.
    shared
        What other processes of this machine use as well.

    Raises
    ------
    ConfigError
        If a file has changed since.
    """
    federation = federation_of(config, data=shared.data)
    remedy = f"bring the same to all machines of the cluster, or {AGAIN}" if config.engine.address else AGAIN
    check_unchanged(config, files, READ_BY_WORKERS, remedy)
    federation.share_frozen(shared.frozen)
    # After more rounds than one, clients of the same worker would lose what they have learned since the checkpoint.
    return client_app(federation, cohort, dies=config.checkpoint_every == 1)


def _answers(train: Together, evaluate: Together, requests: Sequence[Request]) -> Sequence[Reply]:
    is_training = requests[0][0].metadata.message_type == MessageType.TRAIN
    return (train if is_training else evaluate)(requests)


def _replies(federation: Federation, requests: Sequence[Request]) -> list[Reply]:
    return [reply for reply, _ in _train(federation, requests)]


def _train(federation: Federation, requests: Sequence[Request]) -> list[Measurable]:
    """Train one client, or a cohort, by the plan of the first message: it is the same for all.

    A client whose update is of no use has an error in place of its reply, and its neighbours keep theirs. With each
    comes from where the size of the update counts.
    """
    instructions = [Instructions.of(message) for message, _ in requests]
    started = [federation.start_of(local_of(federation, *request)) for request in requests]
    states = [stored(context, OPTIMIZER) for _, context in requests]
    trained = _trained(federation, instructions[0], started, states)
    finished = []
    for local, (params, training) in zip(started, trained, strict=True):
        finished.append(federation.finish_of(replace(local, params=params, sets=training.sets), local))
    replies: list[Measurable] = []
    ended: list[tuple[Local, RecordDict]] = []
    for request, asked, local, result, (_, training) in zip(
        requests, instructions, started, finished, trained, strict=True
    ):
        try:
            sent = _checked(federation, asked, result)
            start = start_of(request[0], local.params, sent, result.unsent)
            tells = bool(result.unsent) or is_unknown(federation, request[0], start)
            norm = size_of(sent, start, asked.max_norm) if tells or asked.max_norm is not None else 0.0
        except ClientError as error:
            replies.append((error, {}))
            continue
        reply = _reply(federation, asked, request[1], local, result, sent, training)
        if tells:
            messages.say(reply, messages.NORM, norm)
        replies.append((reply, start))
        ended.append((replace(local, params=result.params, sets={**training.sets, **result.kept}), reply))
    if instructions[0].measure and ended:
        # Once the replies are written: evaluation uses the model in which a single client's update was.
        _measure_trained(federation, ended)
    return replies


def _measure_trained(federation: Federation, ended: Sequence[tuple[Local, RecordDict]]) -> None:
    """Add to each client's reply what its own model achieves right after training."""
    rule, entries = federation.client_rule, federation.initial
    own = [personalised_of(rule, local, entries) for local, _ in ended]
    measured = evaluate_trained(federation, [local.client for local, _ in ended], own)
    for (_, reply), values in zip(ended, measured, strict=True):
        record = reply[messages.METRICS]
        assert isinstance(record, MetricRecord)
        for name, value in values.items():
            record[name] = value


def _trained(
    federation: Federation, instructions: Instructions, started: Sequence[Local], states: Sequence[Params]
) -> list[tuple[Params, Training]]:
    """Return each client's model after training and what it reports; a single one's tensors are the thread's model.

    Clients train as one cohort if their sets have the same form: one that is new may lack what the others have kept.
    """
    settings, server_round = federation.local, instructions.server_round
    tasks = [
        LocalTask(
            params=local.params,
            inputs=local.inputs,
            targets=local.targets,
            rng=rng(federation.config.seed, "train", server_round, *_whose(settings, local)),
            optimizer_state=state,
            ruled=federation.ruled(local),
        )
        for local, state in zip(started, states, strict=True)
    ]
    cohorts: dict[Hashable, list[int]] = {}
    for place, local in enumerate(started):
        cohorts.setdefault(_form_of(local.sets), []).append(place)
    results: dict[int, tuple[Params, Training]] = {}
    for places in cohorts.values():
        federation.seed_streams("dropout", server_round, *_whose(settings, started[places[0]]))
        train = _train_alone if len(places) == 1 else _train_together
        for place, (params, training) in zip(
            places, train(federation, instructions, [tasks[each] for each in places]), strict=True
        ):
            # The next cohort may train in the thread's model.
            results[place] = flat_copy(params) if len(cohorts) > 1 else params, training
    return [results[place] for place in range(len(tasks))]


def _train_together(
    federation: Federation, instructions: Instructions, tasks: Sequence[LocalTask]
) -> list[tuple[Params, Training]]:
    at = RoundOf(instructions.server_round, federation.config.rounds)
    model, augmentation = federation.model(), federation.data.augmentation
    return train_cohort(model, tasks, instructions.plan, federation.local, augmentation, at)


def _train_alone(
    federation: Federation, instructions: Instructions, tasks: Sequence[LocalTask]
) -> list[tuple[Params, Training]]:
    [task], model = tasks, federation.model()
    load_state_(model, task.params)
    training = train_(
        model,
        task.inputs,
        task.targets,
        plan=instructions.plan,
        settings=federation.local,
        rng=task.rng,
        optimizer_state=task.optimizer_state,
        augmentation=federation.data.augmentation,
        ruled=task.ruled,
        at=RoundOf(instructions.server_round, federation.config.rounds),
    )
    return [(state_of(model), training)]


def _whose(settings: LocalSettings, local: Local) -> tuple[int, ...]:
    """Return the end of the path of the stream that a client trains with: its own, or that of all."""
    return (local.client,) if settings.order == "own" else ()


def _form_of(sets: Sets) -> Hashable:
    """Return the names of sets and of their entries, with shapes and types."""
    entries = {(name, key, value.shape, value.dtype) for name, each in sets.items() for key, value in each.items()}
    return frozenset(sets), frozenset(entries)


def _checked(federation: Federation, instructions: Instructions, finished: Finished) -> Params:
    """Return the layers that a client would send; if they are of no use, nothing is kept and it resumes from before."""
    upload = finished.params if finished.upload is None else finished.upload
    shared = {key: upload[key] for key in instructions.upload if key in upload}
    if wrong := misfit(finished.params, federation.initial) or misfit(shared, federation.initial):
        raise ClientError(f"its rule returns a model in which {wrong}")
    sent = messages.narrowed(shared) if instructions.in_bfloat16 else shared
    # Rounding makes infinity of the largest numbers of float32.
    if not is_finite(sent):
        raise ClientError("its update is not finite; a lower local.lr may help")
    if broken := [name for name, entries in finished.sent.items() if not is_finite(entries)]:
        raise ClientError(f"its {broken[0]} has values that are not finite")
    for names in (finished.kept, finished.sent):
        if taken := set(names) & set(messages.RESERVED):
            raise ValueError(f"a rule's set is called {min(taken)!r}, which messages use already; give it another name")
    return sent


def _reply(
    federation: Federation,
    instructions: Instructions,
    context: Context,
    local: Local,
    finished: Finished,
    sent: Params,
    training: Training,
) -> RecordDict:
    """Write what the client sends and keep what it keeps: copies, as the model is used for the next client."""
    params, keep = finished.params, instructions.keep
    kept = {key: value for key, value in params.items() if key in keep or not value.is_floating_point()}
    context.state[MODEL] = messages.encode(flat_copy(kept))
    for name in messages.sets_of(context.state):
        del context.state[name]
    for name, entries in finished.kept.items():
        context.state[name] = messages.encode(flat_copy(entries))
    if federation.config.local.optimizer_state == "keep":
        context.state[OPTIMIZER] = messages.encode(flat_copy(training.optimizer_state))
    passes = training.passes, local.network.passes
    measured = {
        "loss": training.loss,
        "forward_examples": sum(each.forward for each in passes),
        "backward_examples": sum(each.backward for each in passes),
        "n": number_of_targets(local.targets),
    }
    metrics = {messages.NUM_EXAMPLES: len(local.targets), **finished.metrics}
    metrics |= {metric_name(UPLOADED, "train", name): value for name, value in measured.items()}
    arrays = messages.encode(flat_copy(sent))
    reply = RecordDict({messages.ARRAYS: arrays, messages.METRICS: messages.measurements(metrics)})
    has_no_loss = passes[0].forward > 0 and not math.isfinite(training.loss)
    messages.say_missing(reply, not_finite(federation, context) or messages.NO_LOSS * has_no_loss)
    for name, entries in finished.sent.items():
        reply[name] = messages.encode(flat_copy(entries))
    if instructions.probe:
        # The analysis sees the client's whole model, also where it sends something else.
        seen = sent if finished.upload is None else {}
        others = {key: value for key, value in params.items() if key not in seen}
        reply[messages.PROBE] = messages.encode(flat_copy(others))
        if finished.measured is not None:
            reply[messages.MEASURED] = messages.encode(flat_copy(finished.measured))
    return reply
