"""The public names of a module, from their docstrings."""

import dataclasses
import importlib
import inspect
from typing import Any

from docutils import nodes
from markdown import as_markdown
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

PLAIN = (str, int, float, type(None))


def write(module: str, *names: str) -> str:
    """Write an entry per name, or per public name of the module, below a list of them if there are many."""
    found = {name: getattr(importlib.import_module(module), name) for name in names or _public(module)}
    entries = {name: _entry(f"{module}.{name}", value) for name, value in found.items()}
    listed = {name: (inspect.getdoc(found[name]) or "").partition("\n\n")[0] for name, text in entries.items() if text}
    rows = [f"- [`{name}`](#{module}.{name}): {as_markdown(text)}" for name, text in listed.items()]
    return "\n".join(rows) + "\n\n```{eval-rst}\n" + "\n".join(entries.values()) + "```"


def _public(module: str) -> list[str]:
    names: list[str] = importlib.import_module(module).__all__
    return names


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:\n   :exclude-members: {', '.join(_fields(value))}\n"
    return f".. autofunction:: {name}\n" if inspect.isfunction(value) else ""


def _fields(record: type) -> list[str]:
    """Return the fields of a record, which its parameters describe, and attributes that are classes themselves."""
    named = [each.name for each in dataclasses.fields(record)] if dataclasses.is_dataclass(record) else []
    return [*named, *getattr(record, "_fields", ()), *(name for name, each in vars(record).items() if _is_class(each))]


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def _is_class(value: object) -> bool:
    return inspect.isclass(value)


def shorten(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Write ``...`` for defaults that are functions or other objects."""
    if what not in ("class", "function") or (inspect.isclass(value) and issubclass(value, Exception)):
        return None
    found = inspect.signature(value)
    odd = [each for each in found.parameters.values() if each.default is not each.empty and not _is_plain(each.default)]
    if not odd:
        return None
    parameters = [each.replace(default=...) if each in odd else each for each in found.parameters.values()]
    text = stringify_signature(
        found.replace(parameters=parameters, return_annotation=found.empty), unqualified_typehints=True
    )
    return text.replace("Ellipsis", "..."), returned


def set_dashes(app: Sphinx, page: nodes.document) -> None:
    """Set a colon between a parameter and its text, where two hyphens would look like an option of a command."""
    for text in list(page.findall(nodes.Text)):
        if text.astext().startswith(" -- "):
            text.parent.replace(text, nodes.Text(text.replace(" -- ", ": ", 1)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("doctree-read", set_dashes)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
