"""Parameters with step sizes of their own, and those that do not decay."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fedsim.models.layers import Layers
from fedsim.training.plan import Phase
from fedsim.training.settings import LocalSettings


class ParameterGroup(NamedTuple):
    """What differs between parameters in a step: the factor of the step size, and the weight decay."""

    lr_scale: float
    weight_decay: float


def parameter_groups(layers: Layers, settings: LocalSettings, phase: Phase) -> Callable[[str], ParameterGroup]:
    """Return a function from names of trained parameters, those of a set as ``set/key``, to their groups.

    Raises
    ------
    ValueError
        If an expression of an ``lr_scale`` cannot be read, names no parameter, or names a layer that another names.
    """
    run, own = scales(layers, settings.lr_scale), scales(layers, phase.lr_scale)
    spared = _biases_and_norms(layers) if settings.weight_decay_on == "weights" else set()

    def group(name: str) -> ParameterGroup:
        key = name.rpartition("/")[2]
        decay = 0.0 if key in spared else settings.weight_decay
        return ParameterGroup(run.get(key, 1.0) * own.get(key, 1.0), decay)

    return group


def scales(layers: Layers, lr_scale: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of the step size by parameter, of those that an expression names.

    Raises
    ------
    ValueError
        As for `parameter_groups`.
    """
    found: dict[str, float] = {}
    named: dict[str, str] = {}
    for expression, scale in lr_scale.items():
        try:
            group = layers.group(expression)
        except ValueError as error:
            raise ValueError(f"lr_scale names {expression!r}: {error}") from error
        if not set(group) <= set(layers.names) or not (keys := layers.keys(group, buffers=False)):
            raise ValueError(
                f"lr_scale names {expression!r}, which holds no parameter to train; name other layers, of: "
                f"{', '.join(layers.names)}"
            )
        for name in group:
            if name in named:
                raise ValueError(
                    f"lr_scale names {name} in {named[name]!r} and in {expression!r}; each layer may be named once"
                    f"{_remedy(layers, (named[name], expression), name)}"
                )
            named[name] = expression
        found |= dict.fromkeys(keys, scale)
    return found


def _remedy(layers: Layers, expressions: tuple[str, str], name: str) -> str:
    """Return how the expression that names more layers leaves one out."""
    wider = max(expressions, key=lambda each: len(layers.group(each)))
    if len(layers.group(wider)) == 1:
        return ", so remove one of these"
    return f", as by {f'({wider}) - {name}' if ' ' in wider else f'{wider} - {name}'!r}"


def _biases_and_norms(layers: Layers) -> set[str]:
    return {
        key for layer in layers for key in layer.parameters if layer.kind == "norm" or "bias" in key.rpartition(".")[2]
    }
