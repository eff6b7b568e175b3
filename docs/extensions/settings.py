"""Every key of an experiment's file, from the records that check it."""

from markdown import as_markdown, code, table

from fedsim.config.described import TOP, TableText, described_tables


def write() -> str:
    """Write a section per table."""
    return "\n\n".join(_section(name, each) for name, each in described_tables().items())


def _section(name: str, of: TableText) -> str:
    rows = [(code(each.key), *map(as_markdown, (each.default, each.values, each.text))) for each in of.keys]
    head = [f"## {of.title if name == TOP else code(of.title)}", *map(as_markdown, of.about)]
    return "\n\n".join([*head, table(("key", "default", "values", "meaning"), rows)])
