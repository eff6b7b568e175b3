"""Checks of what Python users hand to a measurement: models, states, numbers and examples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def kind(value: Any) -> str:
    """Return the name of a value's type, with its article."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def check_model(model: Any) -> None:
    """Check that a model is one.

    Raises
    ------
    TypeError
        If it is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {kind(model)}; give a torch module, such as Net()")


def check_list(states: Any) -> None:
    """Check that states are a list of whatever they are.

    Raises
    ------
    TypeError
        If they are not.
    """
    if isinstance(states, str | Mapping | nn.Module) or not isinstance(states, Sequence):
        raise TypeError(f"states is {kind(states)}; give a list of state dicts, such as [one.state_dict(), ...]")


def check_states(states: Any) -> None:
    """Check that states are a list of state dicts.

    Raises
    ------
    TypeError
        If they are not, or a state holds anything but tensors.
    """
    check_list(states)
    for number, state in enumerate(states):
        check_state(f"state {number}", state)


def check_state(name: str, state: Any) -> None:
    """Check that a state is a dict of tensors.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(state, Mapping):
        remedy = "give its state_dict()" if isinstance(state, nn.Module) else "give a state dict"
        raise TypeError(f"{name} is {kind(state)}; {remedy}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} has {key!r}, {kind(value)}; each entry must be a tensor")


def check_examples(inputs: Any, targets: Any, first: str = "inputs") -> None:
    """Check that examples are tensors with a first dimension.

    Raises
    ------
    TypeError
        If they are not tensors.
    ValueError
        If they have no dimension.
    """
    for name, value in ((first, inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {kind(value)}; give a tensor with all examples, such as torch.as_tensor(array)")
        if not value.ndim:
            raise ValueError(f"{name} is a single number; its first dimension must be that of the examples")


def check_is_number(name: str, value: Any, rule: str = "give a number") -> None:
    """Check that a value is a number, which a comparison would not say.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if not _is_number(value):
        raise TypeError(f"{name} = {value!r} is {kind(value)}; {rule}")


def check_numbers(name: str, values: Any) -> None:
    """Check that values are some numbers.

    Raises
    ------
    TypeError
        If they are not a list, or one is no number.
    ValueError
        If there are none.
    """
    if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} = {values!r} is {kind(values)}; give a list of numbers, such as [0.5]")
    for value in values:
        if not _is_number(value):
            raise TypeError(f"{name} has {value!r}, {kind(value)}; give numbers only")
    if not len(values):
        raise ValueError(f"{name} is empty; give at least one number")


def check_weights(weights: Any, states: int) -> None:
    """Check that there is a weight for each state.

    Raises
    ------
    TypeError
        If weights are not numbers.
    ValueError
        If there are fewer or more, or one or their sum is not positive and finite.
    """
    check_numbers("weights", weights)
    numbers = [float(weight) for weight in weights]
    if len(numbers) != states:
        raise ValueError(f"weights has {len(numbers)} weights for {states} members; give one for each state")
    if not all(0 < weight < math.inf for weight in numbers) or not sum(numbers) < math.inf:
        raise ValueError(f"weights = {numbers}: each, and their sum, must be positive and finite")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str | bytes)
