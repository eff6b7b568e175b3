"""Checks of the hooks that a class overrides, on the server's side of a method and on the clients'."""

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from fedsim.errors import ConfigError


def check_overrides(owner: type, base: type, hooks: Collection[str]) -> None:
    """Check the methods that a class adds to its bases: that none is a misspelt hook, nor one with other arguments.

    Raises
    ------
    ConfigError
        If one is.
    """
    known = {name for ancestor in owner.__mro__[1:] for name in vars(ancestor)}
    for name, method in vars(owner).items():
        if not inspect.isfunction(method) or name.startswith("_"):
            continue
        where = f"{owner.__name__}.{name}"
        if name in hooks:
            expected = list(inspect.signature(getattr(base, name)).parameters)
            if not takes(method, len(expected)):
                raise ConfigError(f"{where}{inspect.signature(method)} must take ({', '.join(expected)})")
        elif name not in known and (close := difflib.get_close_matches(name, hooks, n=1, cutoff=0.8)):
            raise ConfigError(
                f"{where} is no hook; did you mean {close[0]!r}? A method that is not meant as a hook needs another "
                "name, such as one with a leading underscore"
            )


def takes(method: Callable[..., Any], count: int) -> bool:
    """Return whether a function can be called with that many arguments."""
    try:
        inspect.signature(method).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # of what is not written in Python, nobody knows
        return True
    return True
