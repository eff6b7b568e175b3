"""One run: built, resumed after a stop, and run round by round."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from flwr.clientapp import ClientApp

from fedsim.config import Config, EngineConfig, making
from fedsim.config.choices import custom_names, method_name
from fedsim.config.content import counted_files
from fedsim.console import PlainFormatter
from fedsim.errors import ClientError, ConfigError, RunError, in_code_of_the_user
from fedsim.experiment.beginning import beginning_of, open_folder
from fedsim.experiment.checkpoints import UNREADABLE, Checkpoints
from fedsim.experiment.local_training import check_training, training_notes
from fedsim.experiment.measuring.checks import check_examples, check_groups, check_matching, check_paths
from fedsim.experiment.measuring.wanted import check_wanted
from fedsim.experiment.predictions import predictions_note, write_predictions
from fedsim.experiment.rounds import Rounds, RoundSummary
from fedsim.experiment.task_checks import check_task, scale_notes
from fedsim.federation.client.app import READ_BY_WORKERS, app_of, client_app
from fedsim.federation.client.fine_tuning import fine_tuned_layers
from fedsim.federation.engines import make_engine
from fedsim.federation.federation import Federation, federation_of
from fedsim.models.draws import same_draws
from fedsim.results.environment import now
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import write_done
from fedsim.seeds import derive
from fedsim.strategy import Strategy
from fedsim.training import cohort_problem

Parts = tuple[Federation, Strategy]
OnRound = Callable[[RoundSummary], None]
logger = logging.getLogger(__name__)
LOCK_SECONDS = 0.5  # one who only looks whether the run is running holds the lock for less


def prepare(config: Config) -> Parts:
    """Build all parts of a run without writing anything.

    Raises
    ------
    ConfigError
        If a part cannot be built, or a layer group of the config matches nothing.
    """
    with in_code_of_the_user("the run cannot be prepared", whole=bool(custom_names(config))):
        return _prepared(config)


def _prepared(config: Config) -> Parts:
    federation = federation_of(config)
    inputs = federation.calibration()
    if config.evaluation.perturbed and not inputs.is_floating_point():
        raise ConfigError(
            f"evaluation.perturbed = {list(config.evaluation.perturbed)} perturbs inputs, but the inputs of "
            f"data.name = {config.data.name!r} are tokens, which have no small perturbations; use []"
        )
    with same_draws(federation.device, derive(config.seed, "prepare")):
        strategy = making.make_strategy(config, federation.model(), inputs)
    strategy.server_data, strategy.training_loss = federation.data.server(), federation.objective
    check_groups(federation)
    check_paths(federation)
    check_matching(federation)
    check_examples(federation)
    check_wanted(federation, strategy)
    check_training(federation, strategy)
    check_task(federation, strategy)
    if "fine-tuned" in config.evaluation.models:
        fine_tuned_layers(federation, strategy)
    _check_validation(federation, strategy)
    _check_server_data(strategy, config)
    wanted = config.engine.gpus_per_worker
    if config.engine.name == "ray" and config.engine.address is None and wanted and not torch.cuda.is_available():
        raise ConfigError(f"engine.gpus_per_worker = {wanted} but this machine has no GPU; use 0")
    if isinstance(config.engine.cohort, int) and config.engine.cohort > 1:
        inputs, targets = federation.data.client(0).train
        try:
            problem = cohort_problem(federation.model(), inputs, targets, federation.objective_of(targets))
        except ClientError as error:
            raise ConfigError(f"model.name = {config.model.name!r}: {error}") from error
        if problem:
            raise ConfigError(f"engine.cohort = {config.engine.cohort}: {problem}; use 1")
    return federation, strategy


def _check_validation(federation: Federation, strategy: Strategy) -> None:
    """Check that clients have validation data where something is decided by them."""
    if len(federation.data.split.validation.indices):
        return
    remedy = "let partition.validation be 0.1"
    if stops_by := federation.config.stop.by:
        raise ConfigError(f"{stops_by} needs validation data, but no client has any; {remedy}, or leave it out")
    if strategy.client_rule.needs_validation:
        raise ConfigError(
            f"strategy.name = {method_name(federation.config)!r} decides by validation data, but no client has any; "
            f"{remedy}, or choose another strategy"
        )


def _check_server_data(strategy: Strategy, config: Config) -> None:
    """Check that the server holds examples where the method learns on them: two, which have a spread."""
    held = 0 if strategy.server_data is None else len(strategy.server_data[1])
    if strategy.needs_server_data and held < 2:
        raise ConfigError(
            f"strategy.name = {method_name(config)!r} learns on examples of the server, and it holds "
            f"{'only one' if held else 'none'}; let data.server_examples be 2 % of the training examples, or choose "
            "another strategy"
        )


def run(
    config: Config,
    folder: RunFolder,
    on_round: OnRound,
    parts: Parts | None = None,
    *,
    accept_versions: bool = False,
    until: int | None = None,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Run all rounds that are not yet done, or until ``[stop]`` ends the run; each is on disk when it ends.

    Parameters
    ----------
    config
        Resolved config, without a sweep.
    on_round
        Function that is called after each round.
    parts
        What `prepare` built for this run, perhaps with another engine, and no other run has used; built if not given.
    accept_versions
        Whether the run may resume under other versions of fedsim or a package than those that it was begun with.
    until
        Round after which it stops, as if it were interrupted.
    finish
        Function that is called after the last round, while no other process can resume the run.

    Raises
    ------
    ConfigError
        If a part cannot be built, the folder cannot be written, is in use by another process or is damaged, or the
        versions are others.
    RunError
        If no client of a round sent a valid update, a worker died, or the folder was removed.
    """
    federation, strategy = parts or prepare(config)
    with _alone_in(folder):
        if folder.done.exists():  # another command has finished it meanwhile
            return
        begin = beginning_of(folder, federation, accept_versions=accept_versions)
        with _log_to(folder):
            open_folder(config, folder, federation, begin)
            rounds = range(begin.done + 1, min(config.rounds, until or config.rounds) + 1)
            _run_rounds(rounds, federation, strategy, folder, on_round)
            if config.evaluation.save_predictions and (until is None or until >= config.rounds):
                write_predictions(folder, federation)
            folder.write_env(folder.read_env() | {"stopped": now()})
            finish()


def _run_rounds(
    server_rounds: range, federation: Federation, strategy: Strategy, folder: RunFolder, on_round: OnRound
) -> None:
    config, done = federation.config, server_rounds.start - 1
    make_app = app_maker(federation, folder.read_env()["cohort"])
    for note in (*scale_notes(federation), *training_notes(federation, strategy), *predictions_note(federation)):
        logger.warning(note)
    shared = federation.shared_parts() if config.engine.name == "ray" else None
    # Clients of this process set the global streams, which the user's program may draw from too.
    with (
        same_draws(federation.device),
        make_engine(_engine_settings(federation), make_app, config.clients, shared) as engine,
    ):
        strategy.set_global_model(federation.initial)
        rounds = Rounds(federation, strategy, engine, folder)
        if done:
            _restore(rounds, done)
        logger.info("rounds %d to %d, engine %s", done + 1, config.rounds, config.engine)
        for server_round in server_rounds:
            if rounds.stopped:
                logger.info("stopped after round %d: %s", server_round - 1, rounds.stopped)
                break
            try:
                # What the strategy's hooks draw before the clients train.
                with same_draws(federation.device, derive(config.seed, "round", server_round)):
                    summary = rounds.run_round(server_round)
            except FileNotFoundError:
                rounds.records.check_in_place()
                raise
            on_round(summary)
        rounds.records.check_in_place()


def _restore(rounds: Rounds, done: int) -> None:
    folder = rounds.folder
    try:
        rounds.restore(done)
    except UNREADABLE as error:
        raise ConfigError(
            f"{folder.checkpoints} is damaged ({error}); remove the folder {folder.path} to start the run again"
        ) from error


def complete(folder: RunFolder) -> None:
    """Write that a run is complete, and seal all its records.

    Raises
    ------
    RunError
        If the folder was removed.
    ConfigError
        If a file of it is damaged.
    """
    if not folder.lock.exists():
        raise RunError(f"run folder {folder.path} was removed or replaced before its run was done; run it again")
    write_done(folder, Checkpoints(folder.checkpoints).rounds())


def rounds_done(folder: RunFolder) -> int:
    """Return the last round that a resumed run would not run again."""
    return Checkpoints(folder.checkpoints).newest()


def _engine_settings(federation: Federation) -> EngineConfig:
    """Return the config's engine; with dropout, threads would draw from one stream, so there is only one."""
    settings = federation.config.engine
    if settings.name == "local" and federation.draws_while_training():
        logger.warning(
            "the model draws random numbers as it trains, so clients train one after the other; engine.name = 'ray' "
            "uses all cores"
        )
        return settings.model_copy(update={"workers": 1})
    return settings


def app_maker(federation: Federation, cohort: int) -> Callable[..., ClientApp]:
    """Return a function that builds the clients' app: here from the federation, in another process from the config."""
    if federation.config.engine.name == "ray":
        return partial(app_of, federation.config, cohort, counted_files(federation.config, READ_BY_WORKERS))
    return partial(client_app, federation, cohort)


def check_writable(folder: Path) -> None:
    """Check that a run's folder is there and can be written, or can be made.

    Raises
    ------
    ConfigError
        If it cannot be written, or its checkpoints could not be read.
    """
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:
        raise ConfigError(
            f"run folder {folder} has a path that is not UTF-8, which safetensors needs; use --out"
        ) from None
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"run folder {folder} cannot be written: {existing} does not allow it; use --out")


@contextmanager
def _alone_in(folder: RunFolder) -> Iterator[None]:
    """Create the folder and lock it; the lock ends with this process, however that ends."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.lock, timeout=LOCK_SECONDS)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"run folder {folder.path} is in use by another process; wait until it ends, or choose another with --out"
        ) from None
    except OSError as error:
        raise ConfigError(f"run folder {folder.path} cannot be written ({error}); choose another with --out") from error
    try:
        yield
    finally:
        lock.release()


class _LogFile(logging.FileHandler):
    """The log of a run: if it cannot be written, the next record of the run cannot either, and ends it in one line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Leave a line out."""

    def close(self) -> None:
        """Close the file, whether what is left to write can be written or not."""
        with suppress(OSError):
            super().close()


@contextmanager
def _log_to(folder: RunFolder) -> Iterator[None]:
    """Also write fedsim's log to the file of the run."""
    handler = _LogFile(folder.log, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("fedsim")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except (ConfigError, RunError) as error:
        logger.info("the run failed: %s", error)
        raise
    except KeyboardInterrupt:
        logger.info("the run was stopped")
        raise
    except BaseException:
        logger.info("the run failed", exc_info=True)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
