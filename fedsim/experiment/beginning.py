"""How a run begins: from the start, or after the newest round whose checkpoint is whole."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from safetensors import SafetensorError

from fedsim.config import Config, naming
from fedsim.config.content import counted_files
from fedsim.errors import ConfigError, message_of
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.same_layers import check_layers
from fedsim.federation.client.app import cohort_size
from fedsim.federation.federation import Federation
from fedsim.federation.participants import participants
from fedsim.results.environment import environment, now
from fedsim.results.files import keep_rounds, write_json, write_whole
from fedsim.results.folder import RunFolder
from fedsim.results.measured import TABLES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Parameters
    ----------
    done
        Round after which it resumes; 0 if it starts.
    problems
        What is wrong with the checkpoints of later rounds.
    is_sealed
        Whether the checkpoint has a manifest, which those of earlier versions have not.
    """

    done: int = 0
    problems: Sequence[str] = ()
    is_sealed: bool = True


def beginning_of(folder: RunFolder, federation: Federation) -> Beginning:
    """Find where a run begins; nothing is changed on disk.

    Raises
    ------
    ConfigError
        If there are checkpoints and none is whole, or the model has other layers now.
    """
    begin = last_whole_round(folder)
    if begin.done:
        check_layers(folder, federation)
    return begin


def last_whole_round(folder: RunFolder) -> Beginning:
    """Find the newest round whose checkpoint is whole.

    Raises
    ------
    ConfigError
        If there are checkpoints and none is whole.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    problems: list[str] = []
    for server_round in reversed(checkpoints.rounds()):
        try:
            manifest = checkpoints.check(server_round)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            problems.append(message_of(error))
        else:
            return Beginning(server_round, problems, is_sealed=manifest is not None)
    if problems:
        others = ", and no earlier checkpoint is whole" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{others}; remove the run's folder to start it again")
    return Beginning()


def open_folder(config: Config, folder: RunFolder, federation: Federation, begin: Beginning) -> None:
    """Cut the folder back to where the run begins, and write what is known at the start."""
    done = begin.done
    for problem in begin.problems[:1]:
        logger.warning("%s; the run resumes after round %d instead", problem, done)
    if not begin.is_sealed:
        logger.info("an earlier version wrote the checkpoint of round %d, in which damage cannot be noticed", done)
    folder.remove_partial_files()
    if not done:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for path in (folder.metrics, folder.communication, folder.timing, folder.faults):
        keep_rounds(path, done)
    for name in TABLES:
        for server_round, path in folder.measured_files(name).items():
            if server_round > done:
                path.unlink()
    known = folder.read_env() if folder.env.exists() else {"started": []}
    # What was chosen by measuring stays, so that a resumed run has the numbers of one that never stopped.
    chosen = known.get("cohort") if config.engine.cohort == "auto" else None
    cohort = chosen or cohort_size(federation)
    about = environment(federation.device) | {"cohort": cohort, "started": [*known["started"], now()]}
    about |= {key: known[key] for key in ("continues",) if key in known}
    if files := counted_files(config):
        about |= {"files": [each.to_json() for each in files], "named_by": naming.changed_settings(config)}
    write_json(folder.env, about)
    write_whole(folder.config, config.to_toml())
    write_json(folder.model, asdict(federation.summary))
    write_json(folder.participants, [participants(config, each) for each in range(1, config.rounds + 1)])
    write_json(folder.partition, federation.data.heterogeneity().to_json())
