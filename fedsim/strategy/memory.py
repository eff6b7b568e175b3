"""What a strategy remembers between rounds: a tree of tensors that a checkpoint can hold."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedsim.errors import RunError
from fedsim.shortening import a_type

# Branches are named by text.
Memory = dict[str, Any]


def check_memory(tree: Mapping[Any, Any], where: str) -> None:
    """Check that a strategy's memory comes back from a checkpoint as it went in.

    Raises
    ------
    RunError
        If a key is no text or has a slash, or a value is no tensor.
    """
    for name, value in tree.items():
        if not isinstance(name, str) or "/" in name:
            raise RunError(f"{where} has the key {name!r}; it must be text without '/', such as str(client)")
        if isinstance(value, dict):
            check_memory(value, f"{where}[{name!r}]")
        elif not isinstance(value, Tensor):
            raise RunError(f"{where}[{name!r}] is {a_type(value)}; it must be a tensor or a dict of them")
