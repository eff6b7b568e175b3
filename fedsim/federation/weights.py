"""The weights in a file, from which the global model starts."""

from pathlib import Path

from torch import nn

from fedsim.config.tables import ModelConfig
from fedsim.data.places import split_file, user_places
from fedsim.errors import ConfigError
from fedsim.models.frozen import frozen_of
from fedsim.models.layers import Layers
from fedsim.models.params import first_keys
from fedsim.models.saved import LISTED, read_checkpoint
from fedsim.results.integrity import check_file_of_checkpoint

DRAWN = ("lora", "dora")  # adapters with random weights; IA3 starts from ones, and VeRA's factors are the run's


def load_weights_(model: nn.Module, settings: ModelConfig) -> None:
    """Load the weights that ``[model] weights`` names, frozen ones too, except for the layers ``weights_skip``.

    Raises
    ------
    ConfigError
        If the file does not exist, is damaged or does not fit, or an expression matches no layer.
    """
    where = f"model.weights = {settings.weights!r}"
    draws = settings.weights_skip or settings.adapter.kind in DRAWN
    if settings.initial == "own" and not draws:
        raise ConfigError(
            f"{where} and initial = 'own' exclude each other: all clients would start from the file's; name layers "
            "that each client draws in model.weights_skip, or remove initial"
        )
    file, part = split_file(settings.weights)
    if file is None:
        looked = " and ".join(str(place.absolute()) for place in user_places(settings.weights))
        raise ConfigError(f"{where} does not exist (looked at {looked}); correct the path, or set $FEDSIM_DATA")
    skip = _keys(model, settings.weights_skip)
    check_file_of_checkpoint(Path(file))
    found = read_checkpoint(Path(f"{file}:{part}" if part else file), model, settings.name, skip)
    # Only the file could give values to what the config freezes; what the model's author freezes may have its own.
    if lacking := [key for key in frozen_of(model) if settings.freeze and key not in found]:
        raise ConfigError(
            f"{where} lacks {', '.join(map(repr, lacking[:LISTED]))}, which model.freeze = {settings.freeze!r} would "
            "keep at random values; give a file with all weights, or train these layers"
        )
    first = first_keys(model)
    loaded = {key: found[first[key]] for key in first if first[key] in found}
    model.load_state_dict(loaded, strict=False)
    if drawn := vars(model).get("drawn"):  # what a pretrained model's own file lacks
        vars(model)["drawn"] = drawn - loaded.keys()


def _keys(model: nn.Module, expression: str) -> frozenset[str]:
    """Return the keys of some layers, under each of their names."""
    if not expression:
        return frozenset()
    layers, first = Layers.of(model), first_keys(model)
    try:
        group = layers.group(expression)
    except ValueError as error:
        raise ConfigError(f"model.weights_skip = {expression!r}: {error}") from error
    return frozenset(key for key in first if (layers.find(first[key]) or "") in group)
