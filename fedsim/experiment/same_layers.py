"""Whether the model of a run still has the layers that its records name."""

from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation
from fedsim.models.layers import Layers
from fedsim.results.folder import RunFolder


def check_layers(folder: RunFolder, federation: Federation) -> None:
    """Check that a run's checkpoints and records mean the layers that its model has today.

    Raises
    ------
    ConfigError
        If another version of fedsim has named them otherwise, or found them in another order.
    """
    now = federation.summary
    if known := folder.read_model():
        before, same = known["layers"], (known["layers"], known["head"]) == (list(now.layers), list(now.head))
    else:
        # Written when layers were in the order of registration, the last linear one was the head, and none was frozen.
        registered = Layers.registered(federation.model())
        before = registered.names
        same = (before, registered.head) == (now.layers, now.head) and not (
            federation.layers.frozen_keys or any(".parametrizations." in f".{key}" for key in federation.initial)
        )
    if not same:
        version = folder.known_env().get("fedsim", "an earlier version")
        raise ConfigError(
            f"run folder {folder.path} was written by fedsim {version}, which named the model's layers differently "
            f"({', '.join(before)}; now: {', '.join(now.layers)}); run it again into another folder with --out"
        )
