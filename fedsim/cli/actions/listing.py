"""``fedsim list``: what can be chosen by name. A list of all names imports none of them; one name shows its options."""

from rich import box
from rich.table import Table
from rich.text import Text

from fedsim.cli.terminal import print_lines
from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, Kind
from fedsim.config.names import canonical
from fedsim.console import PlainConsole
from fedsim.options import as_toml

OURS = "fedsim"  # the source of what has no references, and is no custom entry


def list_all(kind: Kind) -> None:
    """Print the names of a kind, a line about each, and its source."""
    table = Table(box=box.SIMPLE)
    for heading in ("name", "what it does", "source"):
        table.add_column(heading, overflow="fold")
    catalogue = CATALOGUES[kind]
    plain = {each.entry for each in catalogue.names.values() if not each.options}
    for name in catalogue.all_names:
        if name in plain:  # listed by its name in the literature
            continue
        table.add_row(name, *catalogue.describe(name))
    PlainConsole().print(table)
    print_lines(f"options of one: fedsim list {kind} NAME")


def list_one(kind: Kind, name: str) -> None:
    """Print what an entry does, its options and its source."""
    catalogue = CATALOGUES[kind]
    name = canonical(name, catalogue.all_names)
    summary, source = catalogue.describe(name)
    console = PlainConsole()
    console.print(Text(name, style="bold"), f" {summary}")
    if options := _options(catalogue, name):
        console.print(options)
    if named := catalogue.names.get(name):
        written = ", ".join(f"{key} = {as_toml(value)}" for key, value in named.options.items())
        console.print(f"Recorded as: {catalogue.key} = {as_toml(named.entry)}{written and f', {written}'}")
    if canonical(name, catalogue.entries) in catalogue.entries or name in catalogue.names or source != OURS:
        console.print(f"Source: {source}")


def _options(catalogue: Catalogue, name: str) -> Table | None:
    table = Table(box=box.SIMPLE)
    for heading in ("option", "default", "range", "meaning"):
        table.add_column(heading, overflow="fold")
    fixed = catalogue.names[name].options if name in catalogue.names else {}
    for option in catalogue.described_options(name):
        if option.name in fixed:
            continue
        table.add_row(option.name, option.default, option.range, option.text.replace("`", ""))
    return table if table.row_count else None
