"""The parts of a run that every process builds alike from the config: data, partition and initial model."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fedsim.config import Config, making
from fedsim.config.choices import method_name
from fedsim.errors import ConfigError
from fedsim.federation.data import FederatedData, Fit, InputsAndTargets, federated_data_of
from fedsim.federation.metric import Measure, check_metric, make_metric
from fedsim.federation.model import draw_model, make_model
from fedsim.federation.objective import balanced, check_custom, depends_on_batch, make_objective
from fedsim.federation.streams import Streams
from fedsim.lazy import Place
from fedsim.models.adapters import factors_of
from fedsim.models.copies import copy_of
from fedsim.models.draws import CPU, are_equal, same_draws, stream_states
from fedsim.models.frozen import frozen_of, replace_frozen_
from fedsim.models.layers import Layers, describe_
from fedsim.models.parametrised import plain_
from fedsim.models.params import Params, flat_copy, state_of
from fedsim.models.probing import probes_of
from fedsim.models.purity import is_by_example, keeps_something
from fedsim.models.ranks import cut_to_rank
from fedsim.models.summary import ModelSummary, summary_of
from fedsim.seeds import PathPart, derive
from fedsim.training import ClientRule, Finished, Local, Ruled, checked
from fedsim.training.evaluation import Criterion, Evaluation, criterion_of
from fedsim.training.losses import Loss
from fedsim.training.metrics import LOSS, MAIN
from fedsim.training.settings import LocalSettings
from fedsim.training.tasks import TASKS, Task

CALIBRATION_EXAMPLES = 1000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedParts:
    """What all processes of a machine read from the same memory.

    Parameters
    ----------
    data
        In main memory.
    frozen
        Frozen tensors of the model, also in main memory.
    """

    data: FederatedData
    frozen: Params


@dataclass(frozen=True)
class Federation:
    """Data, partition and initial model of a run.

    Parameters
    ----------
    initial
        All distinct entries of the state dict of the server's initial model.
    """

    config: Config
    data: FederatedData
    layers: Layers
    initial: Params
    device: torch.device
    _template: nn.Module
    _models: threading.local = field(default_factory=threading.local)
    # Of the global random streams: initial weights are drawn from them, and a client's training sets them.
    _streams: Streams = field(default_factory=Streams)

    def initial_of(self, client: int) -> Params:
        """Return a client's initial model: the server's, or its own from the seed where the config says so."""
        if self.config.model.adapter.ranks:
            return flat_copy(cut_to_rank(factors_of(self._template), self._drawn_of(client), client))
        return self._drawn_of(client)

    def _drawn_of(self, client: int) -> Params:
        if self.config.model.initial == "shared":
            return self.initial
        with self._streams.seeded(self.device, derive(self.config.seed, "initial model", client)):
            model = draw_model(self.config, self.data.dataset)
        own = model.to(self.device).state_dict()
        skip, drawn = self.config.model.weights_skip, tuple(self.initial)  # frozen tensors are the server's
        if skip and self.config.model.adapter.kind == "none":  # an adapter is drawn on top of the file's weights
            drawn = self.layers.keys(self.layers.group(skip))
        return flat_copy(self.initial | {key: own[key] for key in drawn})

    @cached_property
    def local(self) -> LocalSettings:
        """The settings of local training, checked."""
        return making.make_local(self.config)

    @cached_property
    def summary(self) -> ModelSummary:
        """The model's layers, and how much of it trains."""
        return summary_of(self._template)

    @cached_property
    def objective(self) -> Loss:
        """The loss that training descends; weights of classes that balance all clients' training data are in it."""
        loss = make_objective(self.config, self.data.dataset)
        if depends_on_batch(loss, self._template, self.data.dataset):
            loss = replace(loss, of_batch=True)
        if loss.class_weights is not None:
            return loss.weighted(loss.class_weights.to(self.device))
        if self.config.loss.class_weights != "balanced-all":
            return loss
        dataset = self.data.dataset
        trained_on = dataset.train.targets[torch.from_numpy(self.data.trained_on).to(self.device)]
        return loss.weighted(balanced(trained_on, len(dataset.classes)))

    @cached_property
    def criterion(self) -> Criterion:
        """The loss of each example by which models are measured."""
        return criterion_of(self.objective)

    @property
    def task(self) -> Task:
        """What the models learn."""
        return TASKS[self.data.dataset.task]

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are measured besides the loss and the main metric of the task."""
        config = self.config
        stop = [config.stop.metric] if config.stop.by else []
        main = (LOSS, MAIN, self.task.main)
        asked = (*config.evaluation.metrics, *config.metric.measured, *stop)
        return tuple(dict.fromkeys(name for name in asked if name not in main))

    @cached_property
    def own_metric(self) -> Measure | None:
        """The metric of the user's own, if there is one."""
        return make_metric(self.config)

    def measured(self, result: Evaluation, targets: Tensor) -> dict[str, float]:
        """Return the metrics of a model by name: its loss, the main metric of the task, and what else is asked for."""
        always = {LOSS: result.loss, self.task.main: self.task.main_value(result.error)}
        if not self.metrics:
            return always
        assert result.outputs is not None
        targets, own = targets.cpu(), self.config.metric.measured
        if ours := [name for name in self.metrics if name not in own]:
            scores = Place("fedsim.training.scores", "scores").load()
            always |= scores(ours, self.task.name, result.outputs, targets, self.data.dataset.classes)
        return always | (self.own_metric(result.outputs, targets) if self.own_metric else {})

    def objective_of(self, targets: Tensor) -> Loss:
        """Return the loss that a client with these training targets descends."""
        if self.config.loss.class_weights != "balanced":
            return self.objective
        return self.objective.weighted(balanced(targets, len(self.data.dataset.classes)))

    @cached_property
    def client_rule(self) -> ClientRule:
        """What the strategy's clients do beyond its plan."""
        calibration = self.calibration()
        with self._streams.seeded(self.device, derive(self.config.seed, "rule")):
            return making.make_rule(self.config, self._template, calibration)

    def calibration(self) -> Tensor:
        """Return the inputs that the server holds, a sample of what the clients train on: normalised, [n, ...]."""
        return self.calibration_sample()[0]

    def calibration_sample(self) -> InputsAndTargets:
        """Return these inputs with their targets."""
        return self.data.train_sample(CALIBRATION_EXAMPLES)

    def seed_streams(self, *path: PathPart) -> None:
        """Set the global streams, for what a model or method of the user's own may draw from them while it trains."""
        with_others = self._draws[1] or self._has_custom_method
        self._streams.seed(self.device, derive(self.config.seed, *path), with_others=with_others)

    @contextmanager
    def noticing_draws(self, threads: int) -> Iterator[None]:
        """Warn, once, if a method of the user's own draws from the global streams while its clients share them."""
        if threads == 1 or not self._has_custom_method or self._streams.has_drawn:
            yield
            return
        with self._streams.watched(self.device):
            yield
        if self._streams.has_drawn:
            logger.warning(
                "%s draws from a global random stream in a client, and %d threads share it, so that another run may "
                "have other numbers; draw from local.rng, or set engine.workers = 1",
                method_name(self.config),
                threads,
            )

    def start_of(self, local: Local) -> Local:
        """Return a client as its rule starts it, which may draw from the global streams if it is the user's own."""
        self._seed_rule("start", local)
        return checked.start_of(self.client_rule, local)

    def ruled(self, local: Local) -> Ruled:
        """Return what a started client trains by; a rule of the user's own need not know of padding."""
        takes_padding = ":" not in self.config.strategy.name
        return Ruled(self.client_rule, local.sets, local.rng, local.training_loss, takes_padding)

    def finish_of(self, local: Local, started: Local) -> Finished:
        """Return what a client's rule makes of it after training, as `start_of`."""
        self._seed_rule("finish", local)
        return checked.finish_of(self.client_rule, local, started, self.initial)

    def _seed_rule(self, hook: str, local: Local) -> None:
        if self._has_custom_method:
            self.seed_streams(hook, local.server_round, local.client)

    @cached_property
    def _has_custom_method(self) -> bool:
        return any(
            ":" in name for name in (self.config.strategy.name, self.config.loss.name, self.config.optimizer.name)
        )

    def frozen(self) -> Params:
        """Return the frozen tensors, of which all models of a process share one copy."""
        return frozen_of(self._template)

    def share_frozen(self, frozen: Params) -> None:
        """Use frozen tensors of which other processes have the same copy; only on the CPU do they share memory."""
        replace_frozen_(self._template, {key: value.to(self.device) for key, value in frozen.items()})

    def shared_parts(self) -> SharedParts:
        """Return what other processes need not read or compute again."""
        data = replace(self.data, dataset=self.data.dataset.to(torch.device("cpu")))  # without what it has cached
        return SharedParts(data, {key: value.cpu() for key, value in self.frozen().items()})

    def model(self) -> nn.Module:
        """Return this thread's model: its weights are whatever it was last used with.

        One that keeps more than its weights, such as a hidden state in an attribute, is a new one each time, so that
        nothing gets from a client to the next.
        """
        if self.keeps_something or not hasattr(self._models, "model"):
            self._models.model = copy_of(self._template)
        return self._models.model

    def own_model(self) -> nn.Module:
        """Return this thread's module for clients' own models, which may have more than the model: as `model` does."""
        if not self.client_rule.has_network:
            return self.model()
        if self.keeps_something or not hasattr(self._models, "own"):
            with self._streams.seeded(self.device, derive(self.config.seed, "network")):
                self._models.own = self.client_rule.network(copy_of(self._template)).eval()
        return self._models.own

    def plain_model(self) -> nn.Module:
        """Return a copy of the model as its author builds it, with the keys of its checkpoints."""
        dataset, settings = self.data.dataset, self.config.model
        model = copy_of(self._template, shares_frozen=False)
        plain_(model)
        describe_(model, dataset.normalise(dataset.train.inputs[:2].clone()), settings.head, settings.freeze)
        return model

    @cached_property
    def keeps_something(self) -> bool:
        """Whether the model keeps more than its weights, such as a hidden state in an attribute."""
        return keeps_something(self._template, self.data.test(2)[0])

    @cached_property
    def is_by_example(self) -> bool:
        """Whether the model's outputs for an example depend on nothing else, in evaluation mode."""
        return is_by_example(self._template, probes_of(self.data.test(5)[0]))

    def draws_while_training(self) -> bool:
        """Return whether the model draws random numbers as it trains: all threads then share the streams."""
        return any(self._draws)

    @cached_property
    def _draws(self) -> tuple[bool, bool]:
        """Whether the model draws from torch's stream as it trains, and from another."""
        inputs = probes_of(self.data.test(2)[0])[:2].to(CPU)
        # A copy of everything: moving one that shares frozen tensors would move them for all models.
        model = copy_of(self._template, shares_frozen=False).cpu().train()
        with same_draws(), torch.no_grad():
            of_torch, *before = stream_states()
            model(inputs)
            after, *others = stream_states()
        return not are_equal(of_torch, after), not are_equal(before, others)


def federation_of(config: Config, *, fit: Fit = "trained on", data: FederatedData | None = None) -> Federation:
    """Build the parts of a run from a resolved config; the data are read once per process.

    Parameters
    ----------
    fit
        As in `federated_data_of`.
    data
        The data, if another process has read them.

    Raises
    ------
    ConfigError
        If the data are missing or damaged, or the model or the partition is impossible.
    """
    data = data or federated_data_of(config, fit=fit)
    device = choose_device(config.device)
    with same_draws(device, derive(config.seed, "initial model")):
        model = make_model(config, data.dataset, data.split.train.sizes).eval()
    check_custom(config, data.dataset, model, make_objective(config, data.dataset))
    check_metric(config, data.dataset, model)
    return Federation(
        config=config,
        data=replace(data, dataset=data.dataset.to(device)),
        layers=Layers.of(model),
        initial=flat_copy(state_of(model.to(device))),
        device=device,
        _template=model,
    )


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        If this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device.type]:
        raise ConfigError(f"device = {name!r} is not on this machine; use 'auto' or 'cpu'")
    return device
