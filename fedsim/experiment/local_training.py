"""What a run's clients train with: checked before it starts, and described."""

from collections.abc import Iterator

import numpy as np
import torch

from fedsim.config.choices import CATALOGUES
from fedsim.config.making import CHECKED_ROUNDS
from fedsim.errors import ConfigError, is_of_the_user
from fedsim.federation.federation import Federation
from fedsim.federation.participants import unseen
from fedsim.models.copies import copy_of
from fedsim.models.params import Params, load_state_
from fedsim.models.tensors import name_type
from fedsim.seeds import rng
from fedsim.strategy import Strategy
from fedsim.strategy.forgotten import forgotten_by
from fedsim.training.batches import cut_batches
from fedsim.training.local import train_
from fedsim.training.parameter_groups import scales
from fedsim.training.plan import LocalPlan, Phase
from fedsim.training.precision import gains_from_bfloat16
from fedsim.training.rule import Ruled
from fedsim.training.schedule import RoundOf, Schedule, steps_of


def check_training(federation: Federation, strategy: Strategy) -> None:
    """Check that the settings of ``[local]``, and an optimiser of the user's own, fit the model and the clients' data.

    Raises
    ------
    ConfigError
        If an expression of ``lr_scale`` names no layers to train, the model or its inputs have a type that does not go
        with the precision, no client would complete the warm-up, or the optimiser takes no steps.
    """
    settings = federation.local
    try:
        scales(federation.layers, settings.lr_scale)
    except ValueError as error:
        raise ConfigError(f"local.{error}") from error
    if settings.precision == "bfloat16":
        _check_float32(federation)
    if settings.warmup:
        clients, steps = _clients_and_steps(federation, strategy)
        if (most := int(steps.max())) <= settings.warmup:
            raise ConfigError(
                f"local.warmup = {settings.warmup} must be less than the {most} steps that client "
                f"{clients[int(steps.argmax())]} takes in {_span(federation)}, the most of all; use fewer, more epochs "
                "or rounds, or smaller batches"
            )
    if callable(settings.optimizer):
        _check_own_optimizer(federation)


def _check_own_optimizer(federation: Federation) -> None:
    """Take a step with the optimiser, and another one from the state that it keeps."""
    config, name = federation.config, federation.config.optimizer.name
    if isinstance(config.engine.cohort, int) and config.engine.cohort > 1:
        raise ConfigError(
            f"engine.cohort = {config.engine.cohort}: optimizer.name = {name!r} trains one client at a time; use 1"
        )
    inputs, targets = federation.data.client(0).train
    plan, ruled = LocalPlan((Phase(steps=1),)), Ruled(training_loss=federation.objective_of(targets))
    state: Params = {}
    with CATALOGUES["optimizers"].in_code_of(name), torch.random.fork_rng(devices=[]):
        for step in range(2):
            model = copy_of(federation.model())
            load_state_(model, federation.initial)
            stream = rng(config.seed, "tried step", step)
            try:
                training = train_(model, inputs[:2], targets[:2], plan, federation.local, stream, state, ruled=ruled)
            except ValueError as error:
                if is_of_the_user(error):
                    raise
                raise ConfigError(f"optimizer.name = {name!r} {error}") from error
            state = training.optimizer_state


def _check_float32(federation: Federation) -> None:
    """Check that there is nothing in the model or the inputs that autocast would leave as it is."""
    entries = {f"its tensor {key}": value for key, value in (federation.initial | federation.frozen()).items()}
    for name, value in (entries | {"its input": federation.calibration()}).items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ConfigError(
                f"local.precision = 'bfloat16' needs a model of float32, and {name} is of {name_type(value.dtype)} "
                f"(model.name = {federation.config.model.name!r}); use 'float32', which leaves all types as they are"
            )


def training_notes(federation: Federation, strategy: Strategy) -> Iterator[str]:
    """Yield what a user should know of the settings with these clients and on this machine."""
    settings = federation.config.local.settings
    if forgotten := forgotten_by(type(strategy)):
        yield (
            f"{forgotten}, so that a resumed run may have other numbers; keep tensors in self.memory, or write state "
            "and load_state"
        )
    if settings.precision == "bfloat16" and not gains_from_bfloat16(federation.device):
        yield (
            f"local.precision = 'bfloat16' gains nothing: {federation.device} has no instructions for it; use 'float32'"
        )
    if settings.warmup:
        clients, steps = _clients_and_steps(federation, strategy)
        if count := int((steps <= settings.warmup).sum()):
            yield (
                f"{count} of {len(clients)} clients do not complete the warm-up of local.warmup = {settings.warmup} "
                f"steps, as client {clients[int(steps.argmin())]}, which takes {steps.min()} in {_span(federation)}"
            )


def describe_training(federation: Federation, strategy: Strategy) -> str:
    """Return the optimiser, its step size, the first and the last one, and the precision, in a line."""
    config, settings = federation.config, federation.local
    name = config.optimizer.name if callable(settings.optimizer) else settings.optimizer
    parts = [f"{name}: lr {settings.lr:g}"]
    if settings.schedule != "constant" or settings.warmup:
        clients, batches = _clients_and_batches(federation)
        first, last = (_step_size(federation, strategy, batches, at) for at in (1, config.rounds))
        way = settings.schedule if settings.schedule in ("constant", "linear") else f"by {settings.schedule}"
        over = "the run" if settings.schedule_over == "run" else "each round"
        warm = f" after {settings.warmup} steps of warm-up" if settings.warmup else ""
        parts.append(
            f"{way} over {over}{warm} (client {clients[0]}: {first[0]:.3g} in its first step, "
            f"{last[1]:.3g} in its last)"
        )
    if settings.clip_norm:
        parts.append(f"gradients clipped to a norm of {settings.clip_norm:g}")
    if settings.lr_scale:
        parts.append("lr times " + ", ".join(f"{scale:g} in {text!r}" for text, scale in settings.lr_scale.items()))
    if settings.label_smoothing:
        parts.append(f"labels smoothed by {settings.label_smoothing:g}")
    types = {name_type(value.dtype) for value in federation.initial.values() if value.is_floating_point()}
    parts.append("bfloat16 by autocast" if settings.precision == "bfloat16" else " and ".join(sorted(types)))
    return ", ".join(parts)


def _span(federation: Federation) -> str:
    return "all rounds" if federation.config.local.schedule_over == "run" else "a round"


def _clients_and_steps(federation: Federation, strategy: Strategy) -> tuple[list[int], np.ndarray]:
    """Return the clients that train, and how many steps each takes over the whole schedule, in the shortest rounds."""
    config = federation.config
    clients, batches = _clients_and_batches(federation)
    plans = [strategy.local_plan(each) for each in range(1, min(config.rounds, CHECKED_ROUNDS) + 1)]
    steps = np.min([steps_of(plan, config.local.settings, batches) for plan in plans], axis=0)
    return clients, steps * (config.rounds if config.local.schedule_over == "run" else 1)


def _clients_and_batches(federation: Federation) -> tuple[list[int], np.ndarray]:
    """Return the clients that train, and the number of mini-batches in an epoch of each."""
    never = set(unseen(federation.config))
    clients = [client for client in range(federation.config.clients) if client not in never]
    sizes, places = np.unique(federation.data.split.train.sizes[clients], return_inverse=True)
    model, batch_size = federation.model(), federation.config.local.batch_size
    return clients, np.array([len(cut_batches(model, int(size), batch_size)) for size in sizes])[places]


def _step_size(
    federation: Federation, strategy: Strategy, batches: np.ndarray, server_round: int
) -> tuple[float, float]:
    """Return the first client's step sizes in the first and the last step of a round."""
    plan, config = strategy.local_plan(server_round), federation.config
    schedule = Schedule(config.local.settings, plan, batches, RoundOf(server_round, config.rounds))
    found: list[float] = []
    for phase in plan.phases:
        steps = int(schedule.begin(phase)[0])
        found += [schedule.lr_of(0)(0), schedule.lr_of(steps - 1)(0)]
    return (found[0], found[-1]) if found else (config.local.lr, config.local.lr)
