"""How measurements are called: with `Models`, or with a module and state dicts, whose settings then are keywords."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from torch import nn

from fedsim.analysis.data import Data
from fedsim.analysis.models import Models

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
        if not isinstance(first, nn.Module):
            return function(first, *args, **options)
        states, *rest = args
        if len(rest) > len(plain):
            raise TypeError(f"{function.__name__} takes a model, states, {', '.join(plain)}, not {len(rest)} more")
        given = dict(zip(plain, rest, strict=False)) | options
        models = Models(first, states, **{name: given.pop(name) for name in OF_MODELS if name in given})
        if "data" in names:
            given["data"] = Data(**{name: given.pop(name) for name in OF_DATA if name in given})
        return cast(Callable[..., T], function)(models, **given)

    return cast(Measurement[P, T], call)
