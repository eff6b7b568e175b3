"""A model of a run as a file that plain torch loads: safetensors with the keys of the model's state dict."""

import json
import logging
from pathlib import Path

from safetensors.torch import save

import fedsim
from fedsim.errors import ConfigError, is_of_the_system
from fedsim.experiment.kept_round import KeptRound
from fedsim.experiment.restored import global_model, model_of
from fedsim.models.params import Params
from fedsim.results.files import write_whole

logger = logging.getLogger(__name__)


def export_model(kept: KeptRound, path: Path) -> None:
    """Write the model of a kept round: whole or not at all, in place of a file that is there.

    The global model is written as the checkpoint holds it if the data, by which the model is built, are gone.

    Raises
    ------
    ConfigError
        If the model cannot be restored, or the file cannot be written.
    """
    params = {key: value.cpu().contiguous().clone() for key, value in _state(kept).items()}
    try:
        write_whole(path, save(params, metadata_of(kept)))
    except OSError as error:
        if not is_of_the_system(error):
            raise
        raise ConfigError(f"--to {path} cannot be written ({error}); give another file") from error


def describe(kept: KeptRound) -> str:
    """Return a line on what a model is and what the run recorded of it."""
    whose = "global model" if kept.client is None else f"personalised model of client {kept.client}"
    data = "the server's test data" if kept.client is None else "its own test data"
    found = ", ".join(f"{metric} {value:.4f}" for metric, value in sorted(kept.recorded.items()))
    recorded = f"{found} on {data}" if found else "not evaluated in the run"
    return f"{whose} after round {kept.server_round}: {recorded}"


def metadata_of(kept: KeptRound) -> dict[str, str]:
    """Return what a file says of its model: where it is from, and what the run recorded of it."""
    config, folder = kept.config, kept.folder.path.resolve()
    where = {
        "run": f"{folder.parent.name}/{folder.name}",
        "round": str(kept.server_round),
        "client": "global" if kept.client is None else str(kept.client),
        "model": json.dumps(config.model.model_dump(mode="json")),
        "data": config.data.name,
        "strategy": json.dumps(config.strategy.model_dump(mode="json")),
        "seed": str(config.seed),
    }
    recorded = {metric: repr(value) for metric, value in sorted(kept.recorded.items())}
    return {"format": "pt", "fedsim": fedsim.__version__, **where, **recorded}


def _state(kept: KeptRound) -> Params:
    try:
        return model_of(kept).state_dict()
    except ConfigError as error:
        if kept.client is not None or kept.config.strategy.buffers == "recompute":
            raise
        params = global_model(kept)
        if not _is_plain(kept, params):
            raise
        logger.warning("the model is written as the checkpoint holds it, as it cannot be built: %s", error)
        return params


def _is_plain(kept: KeptRound, params: Params) -> bool:
    """Tell whether a checkpoint holds all of the model as its author built it.

    Frozen tensors are in no checkpoint, and complex weights and spectral norms are there in another form.
    """
    is_changed = any("parametrizations." in key or key.endswith("_orig") for key in params)
    return not (is_changed or kept.folder.read_model().get("frozen"))
