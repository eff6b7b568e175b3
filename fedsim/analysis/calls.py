"""How measurements are called: with `Models`, or with a module and state dicts, whose settings then are keywords."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from fedsim.analysis.arguments import kind
from fedsim.analysis.data import Data
from fedsim.analysis.mistakes import explained
from fedsim.analysis.models import Models
from fedsim.options import suggest

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

OF_MODELS = [field.name for field in fields(Models)][2:]
OF_DATA = [field.name for field in fields(Data)]


class Measurement(Protocol[P, T_co]):
    """A function that measures models."""

    @overload
    def __call__(self, models: Models, /, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    def __call__(self, model: nn.Module, states: Sequence[Any], /, *args: Any, **settings: Any) -> T_co: ...


def of_models(function: Callable[Concatenate[Models, P], T]) -> Measurement[P, T]:
    """Let a function of `Models` be called with a module and state dicts as well.

    ``barriers(model, states, inputs, targets, weights=w, groups="full")`` is
    ``barriers(Models(model, states, weights=w), Data(inputs, targets), groups="full")``.
    """
    names = list(signature(function).parameters)[1:]
    # What comes by position: the data as inputs and targets.
    plain = [each for name in names for each in (["inputs", "targets"] if name == "data" else [name])]

    @wraps(function)
    def call(first: Any, *args: Any, **options: Any) -> T:
        if isinstance(first, Models):
            models, given = first, _by_name(function.__name__, "Models(...)", names, args) | options
        else:
            states, *rest = args or (options.pop("states", None),)
            given = _by_name(function.__name__, "a model, states", plain, rest) | options
            models = Models(first, states, **{name: given.pop(name) for name in OF_MODELS if name in given})
            if "data" in names:
                if missing := [name for name in ("inputs", "targets") if given.get(name) is None]:
                    raise TypeError(f"{function.__name__} needs {missing[0]} after a model, states")
                given["data"] = Data(**{name: given.pop(name) for name in OF_DATA if name in given})
        if unknown := [name for name in given if name not in names]:
            known = (
                names if isinstance(first, Models) else [*plain, *OF_MODELS, *(OF_DATA[2:] if "data" in names else ())]
            )
            raise TypeError(f"{function.__name__} has no argument {unknown[0]!r}{suggest(unknown[0], known)}")
        data = given.get("data")
        if "data" in names and not isinstance(data, Data):
            raise TypeError(
                f"{function.__name__} needs data after the models, as Data(inputs, targets), not {kind(data)}"
            )
        inputs = data.inputs if isinstance(data, Data) else given.get("inputs")
        with explained(models, inputs, data), torch.inference_mode(False):  # where tensors say what changes them
            if isinstance(inputs, Tensor):
                models.check_keeps_inputs(inputs)
            return cast(Callable[..., T], function)(models, **given)

    return cast(Measurement[P, T], call)


def _by_name(function: str, before: str, names: Sequence[str], args: Sequence[Any]) -> dict[str, Any]:
    """Return what is given by position by its name."""
    if len(args) > len(names):
        raise TypeError(f"{function} takes {before}, {', '.join(names)}, not {len(args)} more")
    return dict(zip(names, args, strict=False))
