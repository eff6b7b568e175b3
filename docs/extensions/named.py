"""Everything that can be chosen by name, with its source and its options, from the catalogues."""

from markdown import as_markdown, code, escaped, table

from fedsim.config.choices import CATALOGUES


def write(kind: str) -> str:
    """Write a section per entry of one kind, such as ``strategies``."""
    catalogue = CATALOGUES[kind]  # type: ignore[index]
    parts = []
    for name in catalogue.entries:
        text, source = catalogue.describe(name)
        origin = as_markdown(f"Source: {source.rstrip('.')}.")
        parts.append(f"### `{name}`\n\n{as_markdown(text)} {origin}\n")
        options = [
            (code(each.name), code(each.default), escaped(each.range), as_markdown(each.text))
            for each in catalogue.described_options(name)
        ]
        parts.append(table(("option", "default", "range", "meaning"), options) if options else "No options.\n")
    return "\n".join(parts)
