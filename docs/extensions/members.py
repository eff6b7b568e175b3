"""The public names of a module, from their docstrings."""

import importlib
import inspect


def write(module: str, *names: str) -> str:
    """Write an entry per name, or per public name of the module."""
    entries = []
    for name in names or importlib.import_module(module).__all__:
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value):
            entries.append(f".. autoclass:: {module}.{name}\n   :members:\n")
        elif inspect.isfunction(value):
            entries.append(f".. autofunction:: {module}.{name}\n")
    return "```{eval-rst}\n" + "\n".join(entries) + "```"
