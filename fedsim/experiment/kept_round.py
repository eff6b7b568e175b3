"""A round of a run whose models are on disk, found without the data and the model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import pandas as pd

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.federation.client.state import GLOBAL, PERSONALISED
from fedsim.federation.federation import choose_device
from fedsim.results.best_round import best_round, validation_means
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_run
from fedsim.results.seals import DamagedError
from fedsim.results.status import is_running
from fedsim.training.metrics import KNOWN, is_metric, meant, unmeasured

logger = logging.getLogger(__name__)
WantedRound = int | Literal["last", "best"]
Metric = str  # a name in `fedsim.training.metrics.METRICS`


@dataclass(frozen=True)
class KeptRound:
    """A round of a run whose models are on disk.

    Parameters
    ----------
    client
        Client whose personalised model is meant; None for the global model.
    recorded
        By metric: what the run recorded of the model, on the client's own test data or on the server's; empty if the
        round or the client was not evaluated.
    """

    folder: RunFolder
    config: Config
    server_round: int
    client: int | None
    recorded: Mapping[str, float]


def kept_round(
    folder: RunFolder, client: int | None = None, wanted: WantedRound = "last", metric: Metric = "accuracy"
) -> KeptRound:
    """Find a round of a run, and check that its models are there and whole; neither data nor model is needed.

    If the last checkpoint is damaged, the one before it is used, with a warning.

    Parameters
    ----------
    wanted
        The ``last`` checkpoint, the ``best`` round on the clients' validation data, or a round.
    metric
        What the best round is best by.

    Raises
    ------
    ConfigError
        If there is no such client or metric, or the models of the round are not kept or damaged.
    """
    if not isinstance(metric, str) or not is_metric(metric):
        raise ConfigError(f"metric = {metric!r} must be one of {KNOWN}")
    check_run(folder)
    config, rounds = _on_this_machine(folder.read_config()), Checkpoints(folder.checkpoints).rounds()
    if client is not None and not (isinstance(client, Integral) and 0 <= client < config.clients):
        raise ConfigError(f"client = {client!r} must be from 0 to {config.clients - 1}")
    if not rounds:
        raise ConfigError(f"{folder.path} has no checkpoint yet; let 'fedsim run' resume it first")
    table = read_rows(folder.metrics)
    if len(table):
        table = table[table["round"] <= rounds[-1]]
    if wanted == "last":
        found, name = _last_whole(folder, client), "the last round"
    elif wanted == "best":
        metric = meant(metric, table["metric"].unique() if len(table) else ())
        found = _best(folder, table, metric)
        name = f"round {found}, the best by validation {metric},"
    elif isinstance(wanted, Integral) and 1 <= wanted <= config.rounds:
        found, name = int(wanted), f"round {wanted}"
    else:
        raise ConfigError(f"round = {wanted!r} must be 'last', 'best' or from 1 to {config.rounds}")
    if found not in rounds:
        keep = "all" if wanted != "best" else "best"
        some = "round" if len(rounds) == 1 else "rounds"
        raise ConfigError(
            f"{folder.path}: the models of {name} were not kept, only of {some} {', '.join(map(str, rounds))}; "
            f"to keep them set checkpoints.keep to '{keep}', remove the folder and run it again"
        )
    if wanted != "last" and (problem := _problem(folder, found, client)):
        raise lost_models(folder, problem, f"the models of {name} are lost; remove the run's folder to run it again")
    return KeptRound(folder, config, found, client, _recorded(table, found, client))


def _best(folder: RunFolder, table: pd.DataFrame, metric: str) -> int:
    """Return the best round on the clients' validation data."""
    means = validation_means(table.to_dict("records"), metric)
    best = best_round(means, metric)
    if best is not None:
        return best
    if means:
        why = f"no round of {folder.path} has a validation {metric} of every client; use 'last' or a round's number"
    elif len(table) and (table["split"] == "validation").any():
        why = f"{folder.path} has no {metric} on validation data; {unmeasured(metric, table['metric'].unique())}"
    else:
        why = (
            f"{folder.path} has no values on validation data, by which the best round is chosen; use 'last', or run it "
            "with partition.validation greater than 0"
        )
    raise ConfigError(f"round = 'best': {why}")


def _last_whole(folder: RunFolder, client: int | None) -> int:
    """Return the newest round whose models are as they were written."""
    newest_problem = None
    for server_round in reversed(Checkpoints(folder.checkpoints).rounds()):
        problem = _problem(folder, server_round, client)
        if problem is None:
            if newest_problem:
                logger.warning("%s; the models of round %d are used instead", newest_problem, server_round)
            return server_round
        newest_problem = newest_problem or problem
    raise lost_models(
        folder, f"{newest_problem}, and no other models are intact", "remove the run's folder to run it again"
    )


def _problem(folder: RunFolder, server_round: int, client: int | None) -> str | None:
    """Return what is wrong with the files that a model of a round is made of, if anything is."""
    try:
        Checkpoints(folder.checkpoints).check(server_round, () if client is None else (client,))
    except (DamagedError, OSError) as error:
        return str(error)
    return None


def lost_models(folder: RunFolder, problem: str, remedy: str) -> ConfigError:
    """Return what to say of models that cannot be read; of a run that is running they may have been replaced."""
    if is_running(folder):
        return ConfigError(f"{folder.path} is running and replaced its checkpoint ({problem}); give the command again")
    return ConfigError(f"{problem}; {remedy}")


def _on_this_machine(config: Config) -> Config:
    """Return a config whose device is here: a run's models are also wanted where there is no GPU."""
    try:
        choose_device(config.device)
    except ConfigError:
        return config.model_copy(update={"device": "cpu"})
    return config


def _recorded(table: pd.DataFrame, server_round: int, client: int | None) -> dict[str, float]:
    if table.empty:
        return {}
    model, splits = (GLOBAL, ("test",)) if client is None else (PERSONALISED, ("test", "unseen"))
    of_it = table["client"].isna() if client is None else table["client"] == client
    rows = table[of_it & (table["round"] == server_round) & (table["model"] == model) & table["split"].isin(splits)]
    values = rows.set_index("metric")["value"].dropna()
    return {str(metric): float(value) for metric, value in values.items()}
