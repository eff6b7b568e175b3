"""Everything that can be chosen by name, with its source and its options, from the catalogues."""

from markdown import as_markdown, code, escaped, table

from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES
from fedsim.options import as_toml


def write(kind: str) -> str:
    """Write a section per entry of one kind, such as ``strategies``."""
    catalogue = CATALOGUES[kind]  # type: ignore[index]
    parts = []
    for name in catalogue.entries:
        text, source = catalogue.describe(name)
        origin = as_markdown(f"Source: {source.rstrip('.')}.")
        parts.append(f"### `{name}`\n\n{as_markdown(text)} {origin}\n\n{_also(catalogue, name)}\n")
        options = [
            (code(each.name), _default(each.default), escaped(each.range), as_markdown(each.text))
            for each in catalogue.described_options(name)
        ]
        parts.append(table(("option", "default", "values", "meaning"), options) if options else "No options.\n")
    return "\n".join(parts)


def _also(catalogue: Catalogue, entry: str) -> str:
    """Return the names in the literature that choose an entry, with the options that they stand for."""
    found = []
    for name, named in catalogue.names.items():
        if named.entry == entry:
            options = ", ".join(f"{key} = {as_toml(value)}" for key, value in named.options.items())
            found.append(code(name) + (f" ({code(options)})" if options else ""))
    return f"In the literature: {', '.join(found)}." if found else ""


def _default(text: str) -> str:
    return text if text in ("required", "unset") else code(text)
