"""``fedsim list``: what can be chosen by name. A list of all names imports none of them; one name shows its options."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, Kind


def list_all(kind: Kind) -> None:
    """Print the names of a kind, a line about each, and its source."""
    table = Table(box=box.SIMPLE)
    for heading in ("name", "what it does", "source"):
        table.add_column(heading, overflow="fold")
    catalogue = CATALOGUES[kind]
    for name in catalogue.entries:
        table.add_row(name, *map(escape, catalogue.describe(name)))
    Console().print(table)
    print(f"options of one: fedsim list {kind} NAME")


def list_one(kind: Kind, name: str) -> None:
    """Print what an entry does, its options and its source."""
    catalogue = CATALOGUES[kind]
    name = catalogue.canonical(name)
    summary, source = catalogue.describe(name)
    console = Console()
    console.print(f"[bold]{escape(name)}[/bold]  {escape(summary)}", highlight=False)
    if options := _options(catalogue, name):
        console.print(options)
    console.print(f"Source: {escape(source)}", highlight=False)


def _options(catalogue: Catalogue, name: str) -> Table | None:
    table = Table(box=box.SIMPLE)
    for heading in ("option", "default", "range", "meaning"):
        table.add_column(heading, overflow="fold")
    for option in catalogue.described_options(name):
        table.add_row(*map(escape, (option.name, option.default, option.range, option.text)))
    return table if table.row_count else None
